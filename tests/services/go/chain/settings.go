package chain

import (
	"crypto/tls"
	"flag"
	"net/http"
	"net/url"
)

// Settings of a service of HTTP.
type Settings struct {
	Listen        string
	Certificate   string
	Upstream      string
	CA            string
	HTTP2         bool
	UpstreamHTTP2 bool
}

// Flags makes a flag of each field.
func (settings *Settings) Flags() {
	flag.StringVar(&settings.Listen, "listen", "127.0.0.1:8080", "`address` to listen on")
	flag.StringVar(&settings.Certificate, "certificate", "", "`file` with key and certificate: TLS")
	flag.StringVar(&settings.Upstream, "upstream", "", "`URL` of the next service")
	flag.StringVar(&settings.CA, "ca", "", "`file` with the certificate of the next service")
	flag.BoolVar(&settings.HTTP2, "http2", false, "offer HTTP/2")
	flag.BoolVar(&settings.UpstreamHTTP2, "upstream-http2", false, "call in HTTP/2")
}

// Handler calls the next service through a transport.
func (settings *Settings) Handler(transport http.RoundTripper) (*Handler, error) {
	upstream, err := NewUpstream(settings.Upstream, transport, settings.UpstreamHTTP2)
	if err != nil {
		return nil, err
	}
	http.DefaultTransport = transport // what http.Get uses
	return NewHandler(upstream), nil
}

// NewUpstream is the service at a URL, which must answer in HTTP/1.1 or HTTP/2.
func NewUpstream(at string, transport http.RoundTripper, http2 bool) (*Upstream, error) {
	target, err := url.Parse(at)
	if err != nil {
		return nil, err
	}
	major := 1
	if http2 {
		major = 2
	}
	return &Upstream{URL: target, Client: &http.Client{Transport: transport}, Major: major}, nil
}

// Serve listens, with TLS if there is a certificate.
func (settings *Settings) Serve(server *http.Server) error {
	server.Addr = settings.Listen
	if settings.Certificate == "" {
		return server.ListenAndServe()
	}
	if !settings.HTTP2 {
		server.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
	}
	return server.ListenAndServeTLS(settings.Certificate, settings.Certificate)
}
