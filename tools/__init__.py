"""What only maintainers run: the generated parts of the README, the dry run of the paper profile, table conversions."""
