package main

import (
	"context"
	"errors"
	"io"
	"strconv"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"throughline.test/chain"
	"throughline.test/grpc/hops"
)

type service struct {
	hops.UnimplementedHopsServer
	upstream *hops.Upstream
	workers  *chain.Workers
}

func (service *service) Unary(ctx context.Context, request *hops.Request) (*hops.Answer, error) {
	return service.answer(ctx, request.Path)
}

func (service *service) Watch(request *hops.Request, stream hops.Hops_WatchServer) error {
	for piece := 0; piece < hops.Pieces; piece++ {
		if err := stream.Send(&hops.Answer{Piece: hops.Piece}); err != nil {
			return err
		}
	}
	answer, err := service.answer(stream.Context(), request.Path)
	if err != nil {
		return err
	}
	return stream.Send(answer)
}

func (service *service) Collect(stream hops.Hops_CollectServer) error {
	path, received, err := collect(stream, func() error { return nil })
	if err != nil {
		return err
	}
	answer, err := service.answer(stream.Context(), path)
	if err != nil {
		return err
	}
	answer.Received = received
	return stream.SendAndClose(answer)
}

func (service *service) Talk(stream hops.Hops_TalkServer) error {
	path, received, err := collect(stream, func() error {
		return stream.Send(&hops.Answer{Piece: hops.Piece})
	})
	if err != nil {
		return err
	}
	answer, err := service.answer(stream.Context(), path)
	if err != nil {
		return err
	}
	answer.Received = received
	return stream.Send(answer)
}

// collect reads a streamed body to its end; each is called for each piece.
func collect(
	stream interface{ Recv() (*hops.Request, error) }, each func() error,
) (path string, received int64, err error) {
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return path, received, nil
		}
		if err != nil {
			return "", 0, err
		}
		path = request.Path
		received += int64(len(request.Piece))
		if err := each(); err != nil {
			return "", 0, err
		}
	}
}

// answer does what the plan in a path says.
func (service *service) answer(ctx context.Context, path string) (*hops.Answer, error) {
	plan, err := chain.Parse(path)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if plan.Kind == "fail" {
		return nil, failure(plan.ID)
	}
	sent, _ := metadata.FromIncomingContext(ctx)
	answer := &hops.Answer{
		Id:           plan.ID,
		Kind:         plan.Kind,
		Traceparents: sent.Get("traceparent"),
		Upstream:     make([]*hops.Answer, plan.Calls()),
	}
	if plan.Next == "" {
		return answer, nil
	}
	err = service.workers.Run(plan, func(number int) error {
		var err error
		answer.Upstream[number], err = service.call(ctx, plan)
		return err
	})
	return answer, err
}

// failure has the status code that the id leaves when it is divided by 17; for 0 it has none.
func failure(id string) error {
	number, err := strconv.Atoi(id)
	if err != nil {
		return err
	}
	if number%17 == 0 {
		return errors.New(id)
	}
	return status.Error(codes.Code(number%17), id)
}

func (service *service) call(ctx context.Context, plan chain.Plan) (*hops.Answer, error) {
	switch plan.Kind {
	case "watch", "collect", "talk":
		return service.upstream.Call(ctx, plan.Kind, plan.Next, "")
	case "get":
		return service.upstream.Call(context.Background(), "unary", plan.Next, "")
	case "own":
		return service.upstream.Call(ctx, "unary", plan.Next, chain.Own(plan.ID))
	default:
		return service.upstream.Call(ctx, "unary", plan.Next, "")
	}
}
