// A service of golang.org/x/net/http2: plaintext with prior knowledge (h2c), or TLS.
package main

import (
	"flag"
	"log"
	"net/http"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c"

	"throughline.test/chain"
	"throughline.test/http2/transport"
)

func main() {
	settings := chain.Settings{}
	settings.Flags()
	flag.Parse()
	settings.HTTP2, settings.UpstreamHTTP2 = true, true
	next, err := transport.New(settings.Upstream, settings.CA)
	if err != nil {
		log.Fatal(err)
	}
	handler, err := settings.Handler(next)
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	if settings.Certificate == "" {
		server.Handler = h2c.NewHandler(handler, &http2.Server{})
	} else if err := http2.ConfigureServer(server, &http2.Server{}); err != nil {
		log.Fatal(err)
	}
	log.Fatal(settings.Serve(server))
}
