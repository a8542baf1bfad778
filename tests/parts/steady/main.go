// steady is a steady load: keep-alive clients that stream completions, and some that ask /v1/models, until standard input ends.
// Streams that are open then are read to their end; with -once each client asks once, and it ends by itself. No completion is asked for twice.
// With -rate completions are asked for at that rate instead, whatever became of those before (Poisson), over connections that are kept alive.
// On standard output is what became of each, as JSON.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// reset is a request on a connection that had served before, and that ended before a byte of an answer came.
const reset = "reset"

type told struct {
	sync.Mutex
	Probes, Streams     map[string]int
	Longest             float64        // seconds, of a whole stream
	Failed              []float64      // at which second of the load
	Connections, Resets map[string]int // by the engine behind them: all, and those that ended as a reset
	links               map[net.Conn]*link
}

type link struct {
	engine string // the last one that answered
	reset  bool
}

func main() {
	url := flag.String("url", "", "")
	model := flag.String("model", "", "")
	streams := flag.Int("streams", 16, "clients that stream")
	probes := flag.Int("probes", 4, "clients that ask /v1/models")
	rate := flag.Float64("rate", 0, "streams a second, by one client")
	pause := flag.Duration("pause", 10*time.Millisecond, "between two questions of a client")
	low, high := flag.Int("low", 10, "fewest tokens"), flag.Int("high", 100, "most tokens")
	once := flag.Bool("once", false, "")
	flag.Parse()
	seen := told{Probes: map[string]int{}, Streams: map[string]int{}, Connections: map[string]int{}, Resets: map[string]int{}, links: map[net.Conn]*link{}}
	start := time.Now()
	var over atomic.Bool
	var group sync.WaitGroup
	keep := func(clients int, ask func(*http.Client)) {
		for range clients {
			group.Go(func() {
				client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
				for ask(client); !over.Load() && !*once; {
					ask(client)
				}
			})
		}
	}
	keep(*probes, func(client *http.Client) {
		outcome := probe(client, *url)
		seen.Lock()
		seen.Probes[outcome]++
		seen.Unlock()
		time.Sleep(*pause)
	})
	ask := func(client *http.Client) string {
		began := time.Now()
		outcome := seen.stream(client, *url, *model, *low+rand.Intn(*high-*low+1))
		seen.Lock()
		defer seen.Unlock()
		seen.Streams[outcome]++
		if outcome != "ok" {
			seen.Failed = append(seen.Failed, time.Since(start).Seconds())
		}
		if took := time.Since(began).Seconds(); outcome == "ok" && took > seen.Longest {
			seen.Longest = took
		}
		return outcome
	}
	if *rate > 0 {
		group.Go(func() {
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1 << 16}}
			for next := time.Now(); !over.Load(); next = next.Add(time.Duration(rand.ExpFloat64() / *rate * 1e9)) {
				time.Sleep(time.Until(next))
				group.Go(func() { ask(client) })
			}
		})
	} else {
		keep(*streams, func(client *http.Client) {
			if ask(client) != "ok" {
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	if !*once {
		_, _ = io.Copy(io.Discard, os.Stdin)
		over.Store(true)
	}
	group.Wait()
	for _, one := range seen.links {
		seen.Connections[one.engine]++
		if one.reset {
			seen.Resets[one.engine]++
		}
	}
	_ = json.NewEncoder(os.Stdout).Encode(&seen)
}

func probe(client *http.Client, url string) string {
	got, err := client.Get(url + "/v1/models")
	if err != nil {
		return err.Error()
	}
	defer got.Body.Close()
	said, err := io.ReadAll(got.Body)
	switch {
	case err != nil:
		return "cut: " + err.Error()
	case got.StatusCode != 200:
		return fmt.Sprintf("status %d: %.60s", got.StatusCode, said)
	}
	return "ok"
}

func (seen *told) stream(client *http.Client, url, model string, tokens int) string {
	body := fmt.Sprintf(`{"model":%q,"prompt":"hello","max_tokens":%d,"stream":true}`, model, tokens)
	asked, _ := http.NewRequest("POST", url+"/v1/completions", strings.NewReader(body))
	asked.GetBody = nil // without it Go sends nothing again
	asked.Header.Set("Content-Type", "application/json")
	var on httptrace.GotConnInfo
	var answered atomic.Bool
	trace := &httptrace.ClientTrace{
		GotConn:              func(got httptrace.GotConnInfo) { on = got },
		GotFirstResponseByte: func() { answered.Store(true) },
	}
	got, err := client.Do(asked.WithContext(httptrace.WithClientTrace(asked.Context(), trace)))
	switch {
	case err != nil && on.Reused && !answered.Load() && closed(err):
		seen.Lock()
		defer seen.Unlock()
		seen.links[on.Conn].reset = true
		return reset
	case err != nil:
		return err.Error()
	}
	defer got.Body.Close()
	seen.Lock()
	seen.links[on.Conn] = &link{engine: got.Header.Get("X-Engine")}
	seen.Unlock()
	if got.StatusCode != 200 {
		said, _ := io.ReadAll(got.Body)
		return fmt.Sprintf("status %d: %.60s", got.StatusCode, said)
	}
	pieces, done, lines := 0, false, bufio.NewScanner(got.Body)
	for lines.Scan() {
		if text := lines.Text(); text == "data: [DONE]" {
			done = true
		} else if strings.HasPrefix(text, "data: ") {
			pieces++
		}
	}
	if lines.Err() != nil || !done || pieces < tokens {
		return fmt.Sprintf("broken: %v", lines.Err())
	}
	return "ok"
}

// closed: the other end has closed the connection.
func closed(err error) bool {
	for _, one := range []error{io.EOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, one) {
			return true
		}
	}
	return strings.HasSuffix(err.Error(), "server closed idle connection")
}
