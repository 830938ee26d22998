// A client that makes one call and ends.
package main

import (
	"context"
	"flag"
	"log"
	"net/url"

	"throughline.test/chain"
)

func main() {
	at := flag.String("url", "", "`URL` of what is called")
	ca := flag.String("ca", "", "`file` with its certificate")
	flag.Parse()
	transport, err := chain.NewTransport(false, *ca)
	if err != nil {
		log.Fatal(err)
	}
	target, err := url.Parse(*at)
	if err != nil {
		log.Fatal(err)
	}
	path := target.Path
	target.Path = ""
	upstream, err := chain.NewUpstream(target.String(), transport, false)
	if err != nil {
		log.Fatal(err)
	}
	answer, err := upstream.Call(context.Background(), path, "", nil)
	if err != nil {
		log.Fatal(err)
	}
	if err := answer.Check(path); err != nil {
		log.Fatal(err)
	}
}
