package chain

import (
	"sync"
	"time"
)

// Task makes one call of a request; those of a fan are numbered.
type Task func(number int) error

// Workers runs the tasks of requests in goroutines of each kind.
type Workers struct {
	eager *pool
	lazy  *pool
	once  sync.Once
}

// NewWorkers starts the workers that run from the start.
func NewWorkers() *Workers {
	return &Workers{eager: newPool(0)}
}

// Run makes the calls of a plan and waits for all of them.
func (workers *Workers) Run(plan Plan, task Task) error {
	switch plan.Kind {
	case "fan":
		return fan(plan, task)
	case "pool":
		return workers.eager.run(task)
	case "lazy":
		workers.once.Do(func() { workers.lazy = newPool(64) })
		return workers.lazy.run(task)
	case "timer":
		done := make(chan error)
		time.AfterFunc(time.Millisecond, func() { done <- task(0) })
		return <-done
	default:
		return task(0)
	}
}

func fan(plan Plan, task Task) error {
	calls := plan.Calls()
	done := make(chan error, calls)
	branch(0, calls, plan, task, done)
	var first error
	for call := 0; call < calls; call++ {
		if err := <-done; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// branch makes the calls from, from+1, … in goroutines, and ends before they do.
func branch(from, calls int, plan Plan, task Task, done chan<- error) {
	if plan.Depth == 0 {
		done <- task(from)
		return
	}
	plan.Depth--
	each := calls / plan.Width
	for child := 0; child < plan.Width; child++ {
		go branch(from+child*each, each, plan, task, done)
	}
}

type job struct {
	task Task
	done chan<- error
}

type pool struct {
	jobs chan job
}

const workersOfPool = 16

func newPool(buffered int) *pool {
	made := &pool{jobs: make(chan job, buffered)}
	for worker := 0; worker < workersOfPool; worker++ {
		go made.work()
	}
	return made
}

func (pool *pool) work() {
	for job := range pool.jobs {
		job.done <- job.task(0)
	}
}

func (pool *pool) run(task Task) error {
	done := make(chan error, 1)
	pool.jobs <- job{task, done}
	return <-done
}
