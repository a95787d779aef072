"""What only maintainers run: the generated parts of README and docs/ and the dry run of the paper profile."""
