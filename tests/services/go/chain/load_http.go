package chain

import (
	"context"
	"flag"
	"net/http"
	"path"
)

// HTTPLoad is a load of HTTP requests.
type HTTPLoad struct {
	Load
	URL   string
	CA    string
	HTTP2 bool
	Own   bool
}

// Flags makes a flag of each field.
func (load *HTTPLoad) Flags() {
	load.Load.Flags()
	flag.StringVar(&load.URL, "url", "", "`URL` of the first service")
	flag.StringVar(&load.CA, "ca", "", "`file` with its certificate")
	flag.BoolVar(&load.HTTP2, "http2", false, "send in HTTP/2")
	flag.BoolVar(&load.Own, "own", false, "send a traceparent, another one for each request")
}

// Run sends all requests through a transport, and prints what came of it as JSON.
func (load *HTTPLoad) Run(transport http.RoundTripper) error {
	upstream, err := NewUpstream(load.URL, transport, load.HTTP2)
	if err != nil {
		return err
	}
	return load.Load.Run(func(request string) (*Answer, error) {
		traceparent := ""
		if load.Own {
			traceparent = Own(path.Base(request))
		}
		return upstream.Call(context.Background(), request, traceparent, nil)
	})
}
