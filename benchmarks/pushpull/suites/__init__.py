"""What is measured, a question a file; `benchmarks.push_pull --suite NAME` runs one."""
