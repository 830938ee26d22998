"""The kernel side: libbpf, the objects that it loads, cgroups, and facts about the host."""
