"""The data sets of the catalog, one file an entry or a family of entries; each has its `ENTRIES`."""
