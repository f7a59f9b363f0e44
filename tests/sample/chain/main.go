// Command chain is a service that asks another one, or a client that asks it many times at once.
package main

import (
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

var (
	listen      = flag.String("listen", "", "address to serve on; its answer is printed once it listens")
	certificate = flag.String("certificate", "", "PEM file: serve HTTPS")
	key         = flag.String("key", "", "PEM file")
	next        = flag.String("next", "", "URL of the service that each request is passed on to")
	spawn       = flag.Bool("spawn", false, "pass requests on from a goroutine of their own")
	http1       = flag.Bool("http1", false, "speak HTTP/1.1 only")
	ask         = flag.String("ask", "", "URL to ask instead of serving")
	count       = flag.Int("count", 1, "how often to ask")
	at          = flag.Int("at", 1, "how many requests at once")
	work        = flag.Duration("work", 0, "how long each request takes")
)

func client() *http.Client {
	transport := &http.Transport{
		MaxIdleConnsPerHost: 256,
		TLSClientConfig:     &tls.Config{InsecureSkipVerify: true},
		ForceAttemptHTTP2:   !*http1,
	}
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// get gives what is at an address, which must be all right.
func get(client *http.Client, url string) (string, error) {
	answer, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, answer.Status)
	}
	return string(body), err
}

// grow needs much stack, so that the runtime moves it.
func grow(depth int) int {
	var room [256]byte
	room[depth%len(room)] = byte(depth)
	if depth == 0 {
		return 0
	}
	return grow(depth-1) + int(room[depth%len(room)])&1
}

func serve() error {
	asks := client()
	handler := func(writer http.ResponseWriter, request *http.Request) {
		time.Sleep(*work)
		grow(int(request.ContentLength+1) * 64)
		if *next == "" {
			fmt.Fprintln(writer, request.Proto, request.URL.Path)
			return
		}
		type result struct {
			body string
			err  error
		}
		results := make(chan result, 1)
		pass := func() {
			body, err := get(asks, *next+request.URL.Path)
			results <- result{body, err}
		}
		if *spawn {
			go pass()
		} else {
			pass()
		}
		found := <-results
		if found.err != nil {
			http.Error(writer, found.err.Error(), http.StatusBadGateway)
			return
		}
		fmt.Fprint(writer, found.body)
	}
	server := &http.Server{Handler: http.HandlerFunc(handler), ErrorLog: log.New(io.Discard, "", 0)}
	if *http1 {
		server.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	if *certificate != "" {
		return server.ServeTLS(listener, *certificate, *key)
	}
	return server.Serve(listener)
}

func load() error {
	asks := client()
	numbers, failures := make(chan int), make(chan error, *at)
	var workers sync.WaitGroup
	for range make([]struct{}, *at) {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for number := range numbers {
				if _, err := get(asks, fmt.Sprintf("%s/%d", *ask, number)); err != nil {
					select {
					case failures <- err:
					default:
					}
				}
			}
		}()
	}
	start := time.Now()
	for number := range make([]struct{}, *count) {
		numbers <- number
	}
	close(numbers)
	workers.Wait()
	close(failures)
	fmt.Println(*count, "requests in", time.Since(start))
	var all []error
	for err := range failures {
		all = append(all, err)
	}
	return errors.Join(all...)
}

func main() {
	flag.Parse()
	run := serve
	if *ask != "" {
		run = load
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
