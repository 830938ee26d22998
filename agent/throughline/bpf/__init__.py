"""The BPF side: libbpf, the compiled objects, their maps and pins."""
