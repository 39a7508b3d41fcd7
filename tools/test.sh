#!/usr/bin/env bash
# The tests: first the folders whose tests may share the machine, two at a time, then those that start servers and
# watch the clock, one at a time. Runs both parts whatever the first one says.
set -u
cd "$(dirname "$0")/.."

existing() {
    for name in "$@"; do
        if [ -d "tests/$name" ]; then echo "tests/$name"; fi
    done
}
alone=(process demo)
together=()
for folder in tests/*/; do
    name=$(basename "$folder")
    # tests/adapters has targets of its own: make test-jax, make test-torch.
    case " ${alone[*]} adapters __pycache__ " in
        *" $name "*) ;;
        *) together+=("tests/$name") ;;
    esac
done

status=0
pytest() {
    .venv/bin/python -m pytest "$@"
    code=$?
    # 5: no tests in these folders
    if [ "$code" -ne 0 ] && [ "$code" -ne 5 ]; then status=1; fi
}
pytest -n 2 --dist worksteal "${together[@]}"
mapfile -t folders < <(existing "${alone[@]}")
if [ "${#folders[@]}" -gt 0 ]; then pytest "${folders[@]}"; fi
if [ "$status" -ne 0 ]; then echo "tests failed: see the summaries above"; fi
exit "$status"
