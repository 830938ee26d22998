// A service of HTTPS, by HTTP/2 or HTTP/1.1, whose next service is one of gRPC with TLS.
package main

import (
	"encoding/json"
	"flag"
	"log"
	"net/http"

	"throughline.test/chain"
	"throughline.test/grpc/hops"
)

func main() {
	settings := chain.Settings{HTTP2: true}
	flag.StringVar(&settings.Listen, "listen", "127.0.0.1:8443", "`address` to listen on")
	flag.StringVar(&settings.Certificate, "certificate", "", "`file` with key and certificate")
	upstream := flag.String("upstream", "", "HOST:PORT of the next service")
	ca := flag.String("ca", "", "`file` with its certificate")
	numbered := flag.Bool("numbered", false, "call METHOD.ID")
	flag.Parse()

	next, err := hops.Dial(*upstream, *ca, *numbered)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(settings.Serve(&http.Server{Handler: gateway{next}}))
}

type gateway struct {
	upstream *hops.Upstream
}

// ServeHTTP makes the call that the plan in the path names, with the request's context.
func (gateway gateway) ServeHTTP(writer http.ResponseWriter, request *http.Request) {
	plan, err := chain.Parse(request.URL.Path)
	if err != nil {
		http.Error(writer, err.Error(), http.StatusNotFound)
		return
	}
	next, err := gateway.upstream.Call(request.Context(), plan.Kind, plan.Next, "")
	if err != nil {
		http.Error(writer, err.Error(), http.StatusBadGateway)
		return
	}
	answer := &chain.Answer{
		ID:           plan.ID,
		Kind:         plan.Kind,
		Protocol:     request.Proto,
		Traceparents: request.Header.Values("traceparent"),
		Upstream:     []*chain.Answer{next.Plain()},
	}
	if err := json.NewEncoder(writer).Encode(answer); err != nil {
		log.Print(err)
	}
}
