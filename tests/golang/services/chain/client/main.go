// A load: sends requests, checks each answer, and prints what came of it as JSON.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"log"
	"net/http"
	"net/url"
	"os"
	"path"

	"throughline.test/chain"
)

func main() {
	target := flag.String("url", "", "`URL` of the first service")
	load := chain.Load{}
	load.Flags()
	ca := flag.String("ca", "", "`file` with its certificate")
	http2 := flag.Bool("http2", false, "HTTP/2, needs an https URL")
	own := flag.Bool("own", false, "send a traceparent, another one for each request")
	flag.Parse()

	first, err := url.Parse(*target)
	if err != nil {
		log.Fatal(err)
	}
	transport, err := chain.NewTransport(*http2, *ca)
	if err != nil {
		log.Fatal(err)
	}
	upstream := &chain.Upstream{URL: first, Client: &http.Client{Transport: transport}, Major: 1}
	if *http2 {
		upstream.Major = 2
	}
	result, err := load.Send(func(request string) (*chain.Answer, error) {
		traceparent := ""
		if *own {
			traceparent = chain.Own(path.Base(request))
		}
		return upstream.Call(context.Background(), request, traceparent, nil)
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		log.Fatal(err)
	}
}
