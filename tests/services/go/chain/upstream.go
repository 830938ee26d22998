package chain

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
)

// Upstream is the next service.
type Upstream struct {
	URL    *url.URL
	Client *http.Client
	Major  int // of the HTTP version that it must answer with
}

// NewTransport speaks HTTP/1.1, or HTTP/2 by ALPN. It trusts the certificates in a file.
func NewTransport(http2 bool, ca string) (*http.Transport, error) {
	config, err := Trust(ca)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		TLSClientConfig:     config,
		MaxIdleConnsPerHost: 256,
		ForceAttemptHTTP2:   http2,
	}
	if !http2 {
		transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	return transport, nil
}

// Trust is the TLS configuration of a client; without a file it trusts what the system does.
func Trust(ca string) (*tls.Config, error) {
	config := &tls.Config{}
	if ca != "" {
		content, err := os.ReadFile(ca)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(content) {
			return nil, fmt.Errorf("no certificate in %s", ca)
		}
	}
	return config, nil
}

// Call sends a request with a context; without a body it is a GET.
func (upstream *Upstream) Call(
	ctx context.Context, path, traceparent string, body io.Reader,
) (*Answer, error) {
	method := http.MethodGet
	if body != nil {
		method = http.MethodPost
	}
	request, err := http.NewRequestWithContext(ctx, method, upstream.URL.String()+path, body)
	if err != nil {
		return nil, err
	}
	if traceparent != "" {
		request.Header.Set("traceparent", traceparent)
	}
	return upstream.read(upstream.Client.Do(request))
}

// Get sends a request as a program does that knows of no contexts.
func (upstream *Upstream) Get(path string) (*Answer, error) {
	return upstream.read(http.Get(upstream.URL.String() + path))
}

func (upstream *Upstream) read(response *http.Response, err error) (*Answer, error) {
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", response.Status, bytes.TrimSpace(content))
	}
	if response.ProtoMajor != upstream.Major {
		return nil, fmt.Errorf("answer in %s", response.Proto)
	}
	answer := &Answer{}
	if err := json.Unmarshal(content, answer); err != nil {
		return nil, fmt.Errorf("%w in %q", err, content)
	}
	if spaces := len(content) - len(bytes.TrimLeft(content, " ")); spaces != answer.Padding {
		return nil, fmt.Errorf("%d spaces came instead of %d", spaces, answer.Padding)
	}
	return answer, nil
}
