"""What only maintainers run: the generated parts of the README and of docs/, the dry run of the paper profile, packing finished runs."""
