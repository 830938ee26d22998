// A load of gRPC calls: checks each answer, and prints what came of it as JSON.
package main

import (
	"context"
	"flag"
	"log"
	"path"

	"throughline.test/chain"
	"throughline.test/grpc/hops"
)

func main() {
	target := flag.String("target", "", "HOST:PORT of the first service")
	load := chain.Load{}
	load.Flags()
	method := flag.String("method", "unary", "unary, watch, collect or talk")
	ca := flag.String("ca", "", "`file` with its certificate: TLS")
	numbered := flag.Bool("numbered", false, "call METHOD.ID")
	own := flag.Bool("own", false, "send a traceparent, another one for each request")
	flag.Parse()

	upstream, err := hops.Dial(*target, *ca, *numbered)
	if err != nil {
		log.Fatal(err)
	}
	err = load.Run(func(request string) (*chain.Answer, error) {
		traceparent := ""
		if *own {
			traceparent = chain.Own(path.Base(request))
		}
		answer, err := upstream.Call(context.Background(), *method, request, traceparent)
		if err != nil {
			return nil, err
		}
		return answer.Plain(), nil
	})
	if err != nil {
		log.Fatal(err)
	}
}
