// A gRPC service, plaintext or TLS.
package main

import (
	"flag"
	"log"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"throughline.test/chain"
	"throughline.test/grpc/hops"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8080", "`address` to listen on")
	certificate := flag.String("certificate", "", "`file` with key and certificate: TLS")
	upstream := flag.String("upstream", "", "HOST:PORT of the next service")
	ca := flag.String("ca", "", "`file` with its certificate: TLS")
	numbered := flag.Int("numbered", 0, "ids that have methods of their own, METHOD.ID")
	workers := flag.Uint("workers", 0, "goroutines that handle one call after another")
	flag.Parse()

	service := &service{workers: chain.NewWorkers()}
	if *upstream != "" {
		next, err := hops.Dial(*upstream, *ca, *numbered > 0)
		if err != nil {
			log.Fatal(err)
		}
		service.upstream = next
	}
	options := []grpc.ServerOption{grpc.NumStreamWorkers(uint32(*workers))}
	if *certificate != "" {
		offered, err := credentials.NewServerTLSFromFile(*certificate, *certificate)
		if err != nil {
			log.Fatal(err)
		}
		options = append(options, grpc.Creds(offered))
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(options...)
	server.RegisterService(hops.Numbered(*numbered), service)
	log.Fatal(server.Serve(listener))
}
