// A load: sends requests, checks each answer, and prints what came of it as JSON.
package main

import (
	"flag"
	"log"

	"throughline.test/chain"
)

func main() {
	load := chain.HTTPLoad{}
	load.Flags()
	flag.Parse()
	transport, err := chain.NewTransport(load.HTTP2, load.CA)
	if err != nil {
		log.Fatal(err)
	}
	if err := load.Run(transport); err != nil {
		log.Fatal(err)
	}
}
