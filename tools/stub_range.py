"""Import every committed stub with the protobuf and grpcio at hand, and send every message through them.

Needs nothing but those two, so it runs in the bare environments of stub_range.sh as well.
"""

import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import google.protobuf  # noqa: E402
import grpc  # noqa: E402
from google.protobuf.descriptor import FieldDescriptor  # noqa: E402


def value_of(field: FieldDescriptor) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return b"\x00\xff" if field.type == FieldDescriptor.TYPE_BYTES else "text"
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return True
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return 1.5
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return field.enum_type.values[-1].number
    return 7


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def fill(message: Any, depth: int = 3) -> Any:
    """Sets every field, messages inside messages down to `depth` (of a oneof the last one stays)."""
    for field in message.DESCRIPTOR.fields:
        # Repeated fields are known by what they can do: label and is_repeated each exist at one end of the range only.
        if is_map(field):
            key, value = field.message_type.fields
            if value.message_type is None:
                getattr(message, field.name)[value_of(key)] = value_of(value)
            elif depth > 0:
                fill(getattr(message, field.name)[value_of(key)], depth - 1)
        elif field.message_type is not None:
            if depth > 0:
                inner = getattr(message, field.name)
                if hasattr(inner, "add"):
                    fill(inner.add(), depth - 1)
                else:
                    inner.SetInParent()
                    fill(inner, depth - 1)
        elif hasattr(getattr(message, field.name), "extend"):
            getattr(message, field.name).extend([value_of(field), value_of(field)])
        else:
            setattr(message, field.name, value_of(field))
    return message


def walk(messages: Any) -> list[Any]:
    found = []
    for descriptor in messages:
        if not descriptor.GetOptions().map_entry:
            found.append(descriptor)
        found += walk(descriptor.nested_types)
    return found


def class_of(module: Any, descriptor: Any) -> Any:
    if descriptor.containing_type is not None:
        return getattr(class_of(module, descriptor.containing_type), descriptor.name)
    return getattr(module, descriptor.name)


def check_messages(module: Any) -> int:
    descriptors = walk(module.DESCRIPTOR.message_types_by_name.values())
    for descriptor in descriptors:
        kind = class_of(module, descriptor)
        message = fill(kind())
        data = message.SerializeToString(deterministic=True)
        back = kind.FromString(data)
        assert back == message, f"{descriptor.full_name} changed on its way"
        assert back.SerializeToString(deterministic=True) == data
    return len(descriptors)


def check_services(module: Any, stubs: Any) -> int:
    """Calls every method over loopback; each handler answers with one filled message."""
    count = 0
    for service in module.DESCRIPTOR.services_by_name.values():
        servicer = getattr(stubs, f"{service.name}Servicer")
        handlers = {}
        for method in service.methods:
            proto = method_proto(module, service.name, method.name)
            handlers[method.name] = handler(class_of(module, method.output_type), proto.server_streaming)
        server = grpc.server(ThreadPoolExecutor(2))
        getattr(stubs, f"add_{service.name}Servicer_to_server")(type(service.name, (servicer,), handlers)(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = getattr(stubs, f"{service.name}Stub")(channel)
            for method in service.methods:
                proto = method_proto(module, service.name, method.name)
                request = fill(class_of(module, method.input_type)())
                call = getattr(stub, method.name)
                answer = call(iter([request]) if proto.client_streaming else request, timeout=10)
                got = list(answer) if proto.server_streaming else [answer]
                assert got == [fill(class_of(module, method.output_type)())], f"{service.name}.{method.name}"
                count += 1
        server.stop(5).wait()
    return count


def handler(kind: Any, streams: bool) -> Any:
    if streams:

        def answers(self: Any, request: Any, context: Any) -> Any:
            yield fill(kind())

        return answers
    return lambda self, request, context: fill(kind())


def method_proto(module: Any, service: str, method: str) -> Any:
    # Whether a method streams is told by its descriptor only in later protobufs; by its proto in all.
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    file = FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
    found = next(candidate for candidate in file.service if candidate.name == service)
    return next(candidate for candidate in found.method if candidate.name == method)


def main() -> int:
    messages = calls = 0
    paths = sorted((ROOT / "proto").rglob("*.proto"))
    assert paths, "no .proto files"
    for path in paths:
        name = ".".join(path.relative_to(ROOT / "proto").with_suffix("").parts)
        module = importlib.import_module(f"{name}_pb2")
        stubs = importlib.import_module(f"{name}_pb2_grpc")
        messages += check_messages(module)
        calls += check_services(module, stubs)
    runtime = f"protobuf {google.protobuf.__version__}, grpcio {grpc.__version__}"
    print(f"{runtime}: {messages} messages round-tripped, {calls} methods called")
    return 0


if __name__ == "__main__":
    sys.exit(main())
