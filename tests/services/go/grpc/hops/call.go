package hops

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"throughline.test/chain"
)

// Pieces is the number of messages of a streamed body.
const Pieces = 16

// retries makes a second attempt of a call that is answered with the code UNAVAILABLE.
const retries = `{"methodConfig": [{
	"name": [{}],
	"retryPolicy": {
		"maxAttempts": 2,
		"initialBackoff": "0.001s",
		"maxBackoff": "0.001s",
		"backoffMultiplier": 1,
		"retryableStatusCodes": ["UNAVAILABLE"]
	}
}]}`

// Piece is each of them.
var Piece = bytes.Repeat([]byte("."), chain.Streamed/Pieces)

// Upstream is the next service.
type Upstream struct {
	conn     *grpc.ClientConn
	numbered bool
}

// Dial connects to HOST:PORT, with TLS if there is a file with its certificate. With numbered, each
// call is of a method of its own: METHOD.ID.
func Dial(target, ca string, numbered bool) (*Upstream, error) {
	offered := insecure.NewCredentials()
	if ca != "" {
		config, err := chain.Trust(ca)
		if err != nil {
			return nil, err
		}
		offered = credentials.NewTLS(config)
	}
	conn, err := grpc.Dial(
		target,
		grpc.WithTransportCredentials(offered),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
		grpc.WithDefaultServiceConfig(retries),
	)
	if err != nil {
		return nil, err
	}
	return &Upstream{conn, numbered}, nil
}

// Call makes one call of a method, with a traceparent of the application unless that is "".
func (upstream *Upstream) Call(
	ctx context.Context, method, path, traceparent string,
) (*Answer, error) {
	if traceparent != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "traceparent", traceparent)
	}
	client := NewHopsClient(upstream.conn)
	if upstream.numbered {
		plan, err := chain.Parse(path)
		if err != nil {
			return nil, err
		}
		client = NewHopsClient(oneNumber{upstream.conn, plan.ID})
	}
	switch method {
	case "unary":
		return client.Unary(ctx, &Request{Path: path})
	case "watch":
		stream, err := client.Watch(ctx, &Request{Path: path})
		if err != nil {
			return nil, err
		}
		return last(stream)
	case "collect":
		stream, err := client.Collect(ctx)
		if err != nil {
			return nil, err
		}
		if err := send(stream, path); err != nil {
			return nil, err
		}
		return counted(stream.CloseAndRecv())
	case "talk":
		stream, err := client.Talk(ctx)
		if err != nil {
			return nil, err
		}
		sent := make(chan error, 1)
		go func() {
			if err := send(stream, path); err != nil {
				sent <- err
				return
			}
			sent <- stream.CloseSend()
		}()
		answer, err := counted(last(stream))
		if err != nil {
			return nil, err
		}
		return answer, <-sent
	}
	return nil, fmt.Errorf("no method %q", method)
}

// send sends a body; where the far side has ended the call, receiving says why.
func send(stream interface{ Send(*Request) error }, path string) error {
	for piece := 0; piece < Pieces; piece++ {
		err := stream.Send(&Request{Path: path, Piece: Piece})
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// last reads a streamed answer to its end.
func last(stream interface{ Recv() (*Answer, error) }) (*Answer, error) {
	pieces := 0
	var answer *Answer
	for {
		next, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if bytes.Equal(next.Piece, Piece) {
			pieces++
		}
		answer = next
	}
	if answer == nil || pieces != Pieces {
		return nil, fmt.Errorf("%d pieces came, then %v", pieces, answer)
	}
	return answer, nil
}

// counted checks that the far side got the whole body.
func counted(answer *Answer, err error) (*Answer, error) {
	if err == nil && answer.Received != chain.Streamed {
		return nil, fmt.Errorf("%d bytes were received", answer.Received)
	}
	return answer, err
}

// Plain is the answer as the load checks it.
func (answer *Answer) Plain() *chain.Answer {
	plain := &chain.Answer{
		ID:           answer.Id,
		Kind:         answer.Kind,
		Protocol:     "gRPC",
		Traceparents: answer.Traceparents,
		Received:     int(answer.Received),
	}
	for _, next := range answer.Upstream {
		plain.Upstream = append(plain.Upstream, next.Plain())
	}
	return plain
}
