// Package transport speaks HTTP/2 by golang.org/x/net/http2 alone.
package transport

import (
	"crypto/tls"
	"net"
	"strings"

	"golang.org/x/net/http2"

	"throughline.test/chain"
)

// New is for a URL: plaintext with prior knowledge where it is no https.
func New(url, ca string) (*http2.Transport, error) {
	config, err := chain.Trust(ca)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(url, "https:") {
		return &http2.Transport{TLSClientConfig: config}, nil
	}
	return &http2.Transport{
		AllowHTTP: true,
		DialTLS: func(network, address string, _ *tls.Config) (net.Conn, error) {
			return net.Dial(network, address)
		},
	}, nil
}
