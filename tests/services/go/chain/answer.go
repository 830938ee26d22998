package chain

import "fmt"

// Answer is what a service saw of a request, and what those that it called did.
type Answer struct {
	ID           string    `json:"id"`
	Kind         string    `json:"kind"`
	Protocol     string    `json:"protocol"`
	Traceparents []string  `json:"traceparents"`
	Received     int       `json:"received,omitempty"` // bytes of the request's body
	Padding      int       `json:"padding,omitempty"`  // spaces before the answer
	Upstream     []*Answer `json:"upstream,omitempty"`
}

// Streamed is the size of a streamed body, in either direction.
const Streamed = 16 * 1024

// Check says what is wrong with the answer to a path.
func (answer *Answer) Check(path string) error {
	plan, err := Parse(path)
	if err != nil {
		return err
	}
	if plan.Kind == "proxy" {
		return answer.Check(plan.Next)
	}
	if answer.ID != plan.ID || answer.Kind != plan.Kind {
		return fmt.Errorf("%s: answer of %s to %s", path, answer.Kind, answer.ID)
	}
	if len(answer.Upstream) != plan.Calls() {
		return fmt.Errorf("%s: %d answers of the next service", path, len(answer.Upstream))
	}
	if (answer.Padding == Streamed) != (plan.Kind == "stream") {
		return fmt.Errorf("%s: %d bytes before the answer", path, answer.Padding)
	}
	for _, next := range answer.Upstream {
		if err := next.Check(plan.Next); err != nil {
			return err
		}
		if plan.Kind == "stream" && next.Received != Streamed {
			return fmt.Errorf("%s: %d bytes came", path, next.Received)
		}
		if own := Own(plan.ID); plan.Kind == "own" &&
			(len(next.Traceparents) != 1 || next.Traceparents[0] != own) {
			return fmt.Errorf("%s: %v instead of %s", path, next.Traceparents, own)
		}
	}
	return nil
}
