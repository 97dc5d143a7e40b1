"""The commands of the command line, by topic; `toptune.cli` puts them together."""
