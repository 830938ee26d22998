// net/http on both sides, and Redis through a pool.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"
)

var backend = os.Getenv("BACKEND")

func call(ctx context.Context, path string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, backend+path, nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

func id(r *http.Request) int {
	number, _ := strconv.Atoi(r.URL.Query().Get("id"))
	return number
}

type handler func(r *http.Request, path string) (string, error)

func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer, err := h(r, fmt.Sprintf("/call?id=%d", id(r)))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	io.WriteString(w, answer)
}

func atOnce(r *http.Request, path string) (string, error) {
	return call(r.Context(), path)
}

func sleep(r *http.Request, path string) (string, error) {
	time.Sleep(10 * time.Millisecond)
	return call(r.Context(), path)
}

func database(client *redis.Client) handler {
	return func(r *http.Request, path string) (string, error) {
		if err := client.Get(r.Context(), "visits").Err(); err != nil && err != redis.Nil {
			return "", err
		}
		return call(r.Context(), path)
	}
}

func two(r *http.Request, path string) (string, error) {
	var answers [2]string
	group, ctx := errgroup.WithContext(r.Context())
	for n := range answers {
		group.Go(func() (err error) {
			answers[n], err = call(ctx, fmt.Sprintf("%s&n=%d", path, n+1))
			return err
		})
	}
	err := group.Wait()
	return answers[0] + answers[1], err
}

type job struct {
	ctx    context.Context
	path   string
	answer chan<- result
}

type result struct {
	text string
	err  error
}

func pool(jobs chan<- job) handler {
	return func(r *http.Request, path string) (string, error) {
		answer := make(chan result)
		jobs <- job{r.Context(), path, answer}
		found := <-answer
		return found.text, found.err
	}
}

func work(jobs <-chan job) {
	for next := range jobs {
		text, err := call(next.ctx, next.path)
		next.answer <- result{text, err}
	}
}

func after(w http.ResponseWriter, r *http.Request) {
	number := id(r)
	w.Header().Set("Content-Length", "2")
	io.WriteString(w, "ok")
	w.(http.Flusher).Flush()
	go func() {
		time.Sleep(time.Duration(number%11) * time.Millisecond)
		if _, err := call(context.Background(), fmt.Sprintf("/call?id=%d", number)); err != nil {
			log.Print(err)
		}
	}()
}

func body(r *http.Request, path string) (string, error) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return "", err
	}
	return call(r.Context(), path)
}

func poll() {
	number := 0
	for range time.Tick(20 * time.Millisecond) {
		if _, err := call(context.Background(), fmt.Sprintf("/poll?id=%d", number)); err != nil {
			log.Print(err)
		}
		number++
	}
}

func main() {
	jobs := make(chan job)
	for range 4 {
		go work(jobs)
	}
	client := redis.NewClient(&redis.Options{
		Addr:     "127.0.0.1:" + os.Getenv("REDIS_PORT"),
		PoolSize: 4,
	})
	http.Handle("GET /at-once", handler(atOnce))
	http.Handle("GET /sleep", handler(sleep))
	http.Handle("GET /database", database(client))
	http.Handle("GET /two", handler(two))
	http.Handle("GET /pool", pool(jobs))
	http.HandleFunc("GET /after", after)
	http.Handle("POST /body", handler(body))
	if os.Getenv("POLLER") != "" {
		go poll()
	}
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
}
