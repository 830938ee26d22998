// The load over golang.org/x/net/http2.
package main

import (
	"flag"
	"log"

	"throughline.test/chain"
	"throughline.test/http2/transport"
)

func main() {
	load := chain.HTTPLoad{}
	load.Flags()
	flag.Parse()
	load.HTTP2 = true
	first, err := transport.New(load.URL, load.CA)
	if err != nil {
		log.Fatal(err)
	}
	if err := load.Run(first); err != nil {
		log.Fatal(err)
	}
}
