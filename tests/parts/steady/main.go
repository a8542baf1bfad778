// steady is a steady load: keep-alive clients that stream completions, and some that ask /v1/models, until standard input ends.
// Streams that are open then are read to their end; with -once each client asks once, and it ends by itself. On standard output is what became of each, as JSON.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

type told struct {
	sync.Mutex
	Probes, Streams map[string]int
	Longest         float64 // seconds, of a whole stream
}

func main() {
	url := flag.String("url", "", "")
	model := flag.String("model", "", "")
	streams := flag.Int("streams", 16, "clients that stream")
	probes := flag.Int("probes", 4, "clients that ask /v1/models")
	pause := flag.Duration("pause", 10*time.Millisecond, "between two questions of a client")
	low, high := flag.Int("low", 10, "fewest tokens"), flag.Int("high", 100, "most tokens")
	once := flag.Bool("once", false, "")
	flag.Parse()
	seen := told{Probes: map[string]int{}, Streams: map[string]int{}}
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
	keep(*streams, func(client *http.Client) {
		began := time.Now()
		outcome := stream(client, *url, *model, *low+rand.Intn(*high-*low+1))
		seen.Lock()
		seen.Streams[outcome]++
		if took := time.Since(began).Seconds(); outcome == "ok" && took > seen.Longest {
			seen.Longest = took
		}
		seen.Unlock()
		if outcome != "ok" {
			time.Sleep(20 * time.Millisecond)
		}
	})
	if !*once {
		_, _ = io.Copy(io.Discard, os.Stdin)
		over.Store(true)
	}
	group.Wait()
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

func stream(client *http.Client, url, model string, tokens int) string {
	body := fmt.Sprintf(`{"model":%q,"prompt":"hello","max_tokens":%d,"stream":true}`, model, tokens)
	got, err := client.Post(url+"/v1/completions", "application/json", strings.NewReader(body))
	if err != nil {
		return err.Error()
	}
	defer got.Body.Close()
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
