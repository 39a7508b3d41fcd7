#!/usr/bin/env bash
# The tests: first the folders whose tests may share the machine, two at a time, then those that start servers, kill
# them and mostly wait, three files at a time: a file's tests share their cluster. Runs both parts whatever the first
# one says.
set -u
cd "$(dirname "$0")/.."

existing() {
    for name in "$@"; do
        if [ -d "tests/$name" ]; then echo "tests/$name"; fi
    done
}
waiting=(process)
together=()
for folder in tests/*/; do
    name=$(basename "$folder")
    # tests/adapters has targets of its own: make test-gpu, test-jax, test-torch.
    case " ${waiting[*]} adapters __pycache__ " in
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
mapfile -t folders < <(existing "${waiting[@]}")
if [ "${#folders[@]}" -gt 0 ]; then pytest -n 3 --dist loadfile "${folders[@]}"; fi
if [ "$status" -ne 0 ]; then echo "tests failed: see the summaries above"; fi
exit "$status"
