// A service of net/http: HTTP/1.1 or HTTP/2, plaintext or TLS.
package main

import (
	"crypto/tls"
	"flag"
	"log"
	"net/http"
	"net/url"

	"throughline.test/chain"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8080", "`address` to listen on")
	certificate := flag.String("certificate", "", "`file` with key and certificate: TLS")
	upstream := flag.String("upstream", "", "`URL` of the next service")
	ca := flag.String("ca", "", "`file` with the certificate of the next service")
	http2 := flag.Bool("http2", false, "offer HTTP/2, needs a certificate")
	upstreamHTTP2 := flag.Bool("upstream-http2", false, "call in HTTP/2, needs an https URL")
	flag.Parse()

	target, err := url.Parse(*upstream)
	if err != nil {
		log.Fatal(err)
	}
	transport, err := chain.NewTransport(*upstreamHTTP2, *ca)
	if err != nil {
		log.Fatal(err)
	}
	http.DefaultTransport = transport // what http.Get uses
	major := 1
	if *upstreamHTTP2 {
		major = 2
	}
	server := &http.Server{
		Addr: *listen,
		Handler: chain.NewHandler(&chain.Upstream{
			URL: target, Client: &http.Client{Transport: transport}, Major: major,
		}),
	}
	if *certificate == "" {
		log.Fatal(server.ListenAndServe())
	}
	if !*http2 {
		server.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
	}
	log.Fatal(server.ListenAndServeTLS(*certificate, *certificate))
}
