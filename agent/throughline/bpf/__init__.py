"""Access to BPF in the kernel: libbpf, links, TC, and the maps of the programs."""
