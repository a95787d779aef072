"""What only maintainers run: the generated parts of README and docs/, the dry run of the paper profile, packs of finished runs."""
