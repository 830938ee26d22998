package hops

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
)

// Numbered is the service with methods of their own for the ids below a number, METHOD.ID, besides
// the usual ones: a span of a call then shows the id.
func Numbered(ids int) *grpc.ServiceDesc {
	service := Hops_ServiceDesc
	for id := 0; id < ids; id++ {
		for _, method := range Hops_ServiceDesc.Methods {
			method.MethodName = fmt.Sprintf("%s.%d", method.MethodName, id)
			service.Methods = append(service.Methods, method)
		}
		for _, stream := range Hops_ServiceDesc.Streams {
			stream.StreamName = fmt.Sprintf("%s.%d", stream.StreamName, id)
			service.Streams = append(service.Streams, stream)
		}
	}
	return &service
}

// oneNumber makes every call one of the methods of an id.
type oneNumber struct {
	conn *grpc.ClientConn
	id   string
}

func (numbered oneNumber) Invoke(
	ctx context.Context, method string, args, reply interface{}, options ...grpc.CallOption,
) error {
	return numbered.conn.Invoke(ctx, method+"."+numbered.id, args, reply, options...)
}

func (numbered oneNumber) NewStream(
	ctx context.Context, stream *grpc.StreamDesc, method string, options ...grpc.CallOption,
) (grpc.ClientStream, error) {
	return numbered.conn.NewStream(ctx, stream, method+"."+numbered.id, options...)
}
