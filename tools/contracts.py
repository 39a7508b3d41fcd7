"""An import-linter contract: of our own packages, these modules import only those.

The contracts that come with import-linter name what is forbidden; this one names what is allowed, so that a module
added later is shut out until someone opens the door for it.
"""

from typing import Any

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


def within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


class MayImportOnly(Contract):
    importers: Any = fields.SetField(subfield=fields.StringField())
    allowed: Any = fields.SetField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        importers, allowed = set(self.importers), set(self.allowed)
        ours = set(self.session_options["root_packages"])
        sources = sorted(module for module in graph.modules if within(module, importers))
        if missing := sorted(importer for importer in importers if importer not in graph.modules):
            raise ValueError(f"no such module: {', '.join(missing)}")
        broken = [
            detail
            for source in sources
            for target in sorted(graph.find_modules_directly_imported_by(source))
            if within(target, ours) and not within(target, allowed)
            for detail in graph.get_import_details(importer=source, imported=target)
        ]
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def render_broken_contract(self, check: ContractCheck) -> None:
        allowed = ", ".join(sorted(self.allowed))
        for detail in check.metadata["broken"]:
            where = f"{detail['importer']}:{detail['line_number']}"
            output.print_error(f"{where} imports {detail['imported']}; allowed: {allowed}", bold=False)
