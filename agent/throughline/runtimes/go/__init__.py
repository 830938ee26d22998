"""Go: programs read offline, and what go.bpf.o is told of each before it is probed."""
