package chain

import (
	"bufio"
	"encoding/json"
	"flag"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Load is a number of requests, many at a time.
type Load struct {
	Path       string // of all requests, without the id
	Requests   int
	Concurrent int
	First      int    // the first id
	Record     string // a file that gets each answer, one a line
}

// Flags makes a flag of each field.
func (load *Load) Flags() {
	flag.StringVar(&load.Path, "path", "/answer", "`path` of all requests, without the id")
	flag.IntVar(&load.Requests, "requests", 1, "`number` of requests")
	flag.IntVar(&load.Concurrent, "concurrent", 1, "how many requests at a time")
	flag.IntVar(&load.First, "first", 0, "the first id")
	flag.StringVar(&load.Record, "record", "", "`file` that gets each answer, one a line")
}

// Result is what came of a load. Latencies are milliseconds.
type Result struct {
	OK       int      `json:"ok"`
	Failed   int      `json:"failed"`
	P50      float64  `json:"p50_ms"`
	P99      float64  `json:"p99_ms"`
	Seconds  float64  `json:"seconds"`
	Failures []string `json:"failures"` // the first few
}

type outcome struct {
	answer *Answer
	err    error
	took   time.Duration
}

// Run sends all requests with call, and prints what came of it as JSON.
func (load Load) Run(call func(path string) (*Answer, error)) error {
	result, err := load.send(call)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

func (load Load) send(call func(path string) (*Answer, error)) (Result, error) {
	paths := make(chan string)
	outcomes := make(chan outcome, load.Concurrent)
	var clients sync.WaitGroup
	for client := 0; client < load.Concurrent; client++ {
		clients.Add(1)
		go func() {
			defer clients.Done()
			for path := range paths {
				start := time.Now()
				answer, err := call(path)
				took := time.Since(start)
				if err == nil {
					err = answer.Check(path)
				}
				outcomes <- outcome{answer, err, took}
			}
		}()
	}
	start := time.Now()
	go func() {
		for number := 0; number < load.Requests; number++ {
			paths <- strings.TrimRight(load.Path, "/") + "/" + strconv.Itoa(load.First+number)
		}
		close(paths)
		clients.Wait()
		close(outcomes)
	}()
	return load.judge(outcomes, start)
}

func (load Load) judge(outcomes <-chan outcome, start time.Time) (Result, error) {
	result := Result{Failures: []string{}}
	latencies := make([]float64, 0, load.Requests)
	answers := make([]*Answer, 0, load.Requests)
	for outcome := range outcomes {
		if outcome.err != nil {
			result.Failed++
			if len(result.Failures) < 5 {
				result.Failures = append(result.Failures, outcome.err.Error())
			}
			continue
		}
		result.OK++
		latencies = append(latencies, float64(outcome.took.Microseconds())/1000)
		answers = append(answers, outcome.answer)
	}
	result.Seconds = time.Since(start).Seconds()
	if sort.Float64s(latencies); len(latencies) > 0 {
		result.P50 = latencies[len(latencies)/2]
		result.P99 = latencies[len(latencies)*99/100]
	}
	if load.Record == "" {
		return result, nil
	}
	return result, write(load.Record, answers)
}

func write(name string, answers []*Answer) error {
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	defer file.Close()
	buffer := bufio.NewWriter(file)
	encoder := json.NewEncoder(buffer)
	for _, answer := range answers {
		if err := encoder.Encode(answer); err != nil {
			return err
		}
	}
	return buffer.Flush()
}
