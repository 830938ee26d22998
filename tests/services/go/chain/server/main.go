// A service of net/http: HTTP/1.1, or HTTP/2 by ALPN; plaintext or TLS.
package main

import (
	"flag"
	"log"
	"net/http"

	"throughline.test/chain"
)

func main() {
	settings := chain.Settings{}
	settings.Flags()
	flag.Parse()
	transport, err := chain.NewTransport(settings.UpstreamHTTP2, settings.CA)
	if err != nil {
		log.Fatal(err)
	}
	handler, err := settings.Handler(transport)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(settings.Serve(&http.Server{Handler: handler}))
}
