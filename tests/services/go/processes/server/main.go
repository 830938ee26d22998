// The service of net/http, which besides starts children, becomes another program, collects garbage.
package main

import (
	"context"
	"flag"
	"log"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"throughline.test/chain"
)

// The words of a command.
type command []string

func (words *command) String() string     { return strings.Join(*words, " ") }
func (words *command) Set(s string) error { *words = strings.Fields(s); return nil }

type commands struct {
	each []command
	runs int64
}

func (all *commands) String() string     { return "" }
func (all *commands) Set(s string) error { all.each = append(all.each, strings.Fields(s)); return nil }

func main() {
	settings := chain.Settings{}
	settings.Flags()
	var children commands
	flag.Var(&children, "child", "`command` that a request runs before it is served; of several, each in turn")
	var next command
	flag.Var(&next, "become", "`command` that takes the place of this one at SIGUSR1")
	calls := flag.Int("calls", 0, "`number` of calls for nobody, at once, before it listens")
	garbage := flag.Bool("garbage", false, "collect garbage without end")
	end := flag.Bool("end", false, "end at once")
	flag.Parse()
	if *end {
		return
	}
	if len(next) > 0 {
		go become(next)
	}
	if *garbage {
		go collect()
	}
	transport, err := chain.NewTransport(settings.UpstreamHTTP2, settings.CA)
	if err != nil {
		log.Fatal(err)
	}
	if err := callForNobody(&settings, transport, *calls); err != nil {
		log.Fatal(err)
	}
	handler, err := settings.Handler(transport)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(settings.Serve(&http.Server{Handler: http.HandlerFunc(
		func(writer http.ResponseWriter, request *http.Request) {
			if strings.HasPrefix(request.URL.Path, "/hang/") {
				select {}
			}
			if err := children.run(); err != nil {
				http.Error(writer, err.Error(), http.StatusInternalServerError)
				return
			}
			handler.ServeHTTP(writer, request)
		})}))
}

func become(next command) {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	<-asked
	log.Fatal(syscall.Exec(next[0], next, os.Environ()))
}

func (all *commands) run() error {
	if len(all.each) == 0 {
		return nil
	}
	next := all.each[int(atomic.AddInt64(&all.runs, 1))%len(all.each)]
	return exec.Command(next[0], next[1:]...).Run()
}

func callForNobody(settings *chain.Settings, transport *http.Transport, calls int) error {
	upstream, err := chain.NewUpstream(settings.Upstream, transport, settings.UpstreamHTTP2)
	if err != nil {
		return err
	}
	failures := make(chan error, calls)
	var all sync.WaitGroup
	for number := 0; number < calls; number++ {
		all.Add(1)
		go func(path string) {
			defer all.Done()
			if _, err := upstream.Call(context.Background(), path, "", nil); err != nil {
				failures <- err
			}
		}("/answer/" + strconv.Itoa(number))
	}
	all.Wait()
	close(failures)
	return <-failures
}

// collect makes garbage of many sizes, with stacks that grow and are moved, and has it collected.
func collect() {
	kept := make([][]byte, 64)
	for round := 0; ; round++ {
		kept[round%len(kept)] = make([]byte, 64<<(round%12))
		done := make(chan int)
		go func() { done <- deep(256 + round%256) }()
		<-done
		runtime.GC()
		time.Sleep(time.Millisecond) // others want the processor, too
	}
}

func deep(levels int) int {
	var frame [64]byte
	if levels == 0 {
		return int(frame[0])
	}
	frame[levels%len(frame)] = 1
	return deep(levels-1) + int(frame[levels%len(frame)])
}
