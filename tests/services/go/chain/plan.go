// Package chain is what the services of the tests share: what a request asks for, how an answer is
// checked, the kinds of work that call on, and the load.
package chain

import (
	"fmt"
	"strconv"
	"strings"
)

// Plan is what a request's path asks of one service: /KIND/KIND/…/ID, a kind for each hop.
//
//	answer      answers at once
//	fail        fails at once
//	context     calls the next service with the request's context
//	get         calls it without, by http.Get
//	fan-W-D     W goroutines, each of which starts W more, D deep; those of the last level call
//	pool        a worker calls that runs since the service started
//	lazy        a worker calls that was started for the first request that needed one
//	timer       the goroutine of a timer calls
//	after       a goroutine calls after the answer has been sent
//	proxy       httputil.ReverseProxy (or the like) passes the request on
//	stream      sends a body in pieces, and gets one
//	own         calls with a traceparent of its own
//
// Of bare-fan-W-D, bare-pool and bare-lazy the calls are made by http.Get, without the request's context.
//
// Over gRPC, besides, unary, watch, collect and talk say which method is called.
type Plan struct {
	Kind         string
	Bare         bool   // calls without the request's context
	Width, Depth int    // of a fan
	Next         string // the path for the next service, "" at the last
	ID           string // another one for each request, the same at each hop
}

// Parse reads a path.
func Parse(path string) (Plan, error) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	if len(parts) < 2 {
		return Plan{}, fmt.Errorf("no plan in %q", path)
	}
	kind := strings.TrimPrefix(parts[0], "bare-")
	plan := Plan{Kind: kind, Bare: kind != parts[0], Width: 1, ID: parts[len(parts)-1]}
	if len(parts) > 2 {
		plan.Next = "/" + strings.Join(parts[1:], "/")
	}
	if words := strings.Split(kind, "-"); words[0] == "fan" {
		if len(words) != 3 {
			return Plan{}, fmt.Errorf("no width and depth in %q", parts[0])
		}
		var err error
		if plan.Width, err = strconv.Atoi(words[1]); err != nil {
			return Plan{}, err
		}
		if plan.Depth, err = strconv.Atoi(words[2]); err != nil {
			return Plan{}, err
		}
		plan.Kind = "fan"
	}
	if (plan.Next == "") != (plan.Kind == "answer" || plan.Kind == "fail") {
		return Plan{}, fmt.Errorf("%q ends early or late", path)
	}
	return plan, nil
}

// Calls is how many answers of the next service stand in the answer.
func (plan Plan) Calls() int {
	switch plan.Kind {
	case "answer", "fail", "after":
		return 0
	}
	calls := 1
	for level := 0; level < plan.Depth; level++ {
		calls *= plan.Width
	}
	return calls
}

// Own is the traceparent that an application sets for an id.
func Own(id string) string {
	number, _ := strconv.ParseUint(id, 10, 64)
	return fmt.Sprintf("00-0af7651916cd43dd%016x-%016x-01", number+1, number+1)
}
