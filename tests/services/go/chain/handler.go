package chain

import (
	"context"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"strings"
	"time"
)

// Handler serves the plan in a request's path.
type Handler struct {
	upstream *Upstream
	proxy    *httputil.ReverseProxy
	workers  *Workers
}

// NewHandler calls on an upstream.
func NewHandler(upstream *Upstream) *Handler {
	proxy := httputil.NewSingleHostReverseProxy(upstream.URL)
	proxy.Transport = upstream.Client.Transport
	return &Handler{upstream: upstream, proxy: proxy, workers: NewWorkers()}
}

// ServeHTTP answers, whatever the plan is.
func (handler *Handler) ServeHTTP(writer http.ResponseWriter, request *http.Request) {
	plan, err := Parse(request.URL.Path)
	if err != nil {
		http.Error(writer, err.Error(), http.StatusNotFound)
		return
	}
	if plan.Kind == "fail" {
		http.Error(writer, plan.ID, http.StatusServiceUnavailable)
		return
	}
	if plan.Kind == "proxy" {
		request.URL.Path = plan.Next
		handler.proxy.ServeHTTP(writer, request)
		return
	}
	answer := &Answer{
		ID:           plan.ID,
		Kind:         plan.Kind,
		Protocol:     request.Proto,
		Traceparents: request.Header.Values("traceparent"),
		Upstream:     make([]*Answer, plan.Calls()),
	}
	received, err := io.Copy(io.Discard, request.Body)
	if err != nil {
		http.Error(writer, err.Error(), http.StatusBadRequest)
		return
	}
	answer.Received = int(received)
	switch plan.Kind {
	case "answer":
	case "after":
		go handler.callLater(plan)
	case "stream":
		answer.Padding = Streamed
		pad(writer)
		fallthrough
	default:
		err = handler.workers.Run(plan, func(number int) error {
			var err error
			answer.Upstream[number], err = handler.call(request.Context(), plan)
			return err
		})
	}
	if err != nil {
		http.Error(writer, err.Error(), http.StatusBadGateway)
		return
	}
	if err := json.NewEncoder(writer).Encode(answer); err != nil {
		log.Print(err)
	}
}

func (handler *Handler) call(ctx context.Context, plan Plan) (*Answer, error) {
	if plan.Bare {
		return handler.upstream.Get(plan.Next)
	}
	switch plan.Kind {
	case "get":
		return handler.upstream.Get(plan.Next)
	case "own":
		return handler.upstream.Call(ctx, plan.Next, Own(plan.ID), nil)
	case "stream":
		reader, writer := io.Pipe()
		go func() {
			piece := strings.Repeat(".", Streamed/16)
			for sent := 0; sent < Streamed; sent += len(piece) {
				if _, err := io.WriteString(writer, piece); err != nil {
					return // the call has failed, which says so itself
				}
			}
			writer.Close()
		}()
		return handler.upstream.Call(ctx, plan.Next, "", reader)
	default:
		return handler.upstream.Call(ctx, plan.Next, "", nil)
	}
}

// callLater calls when the request is over.
func (handler *Handler) callLater(plan Plan) {
	time.Sleep(5 * time.Millisecond)
	if _, err := handler.upstream.Call(context.Background(), plan.Next, "", nil); err != nil {
		log.Print(err)
	}
}

// pad sends the spaces before a streamed answer, piece by piece.
func pad(writer http.ResponseWriter) {
	piece := strings.Repeat(" ", Streamed/16)
	for sent := 0; sent < Streamed; sent += len(piece) {
		if _, err := io.WriteString(writer, piece); err != nil {
			return
		}
		writer.(http.Flusher).Flush()
	}
}
