package main

import (
	"encoding/json"
	"net/http"
	"sync"
	"time"
)

// sent is what really happened to one stream, on this server's clock: from the arrival of the request's bytes (by the kernel's
// stamp) to the moment before each token's write (on loopback the client's kernel stamps its arrival inside that write).
type sent struct {
	Start int64   `json:"start_ns"`
	TTFT  int64   `json:"ttft_ns"`
	Gaps  []int64 `json:"gaps_ns"`
	Total int64   `json:"total_ns"`
}

type truth struct {
	sync.Mutex
	Requests int    `json:"requests"`
	Tokens   int    `json:"tokens"`
	Prompt   int    `json:"prompt_tokens"`
	Aborted  int    `json:"aborted"`
	Errors   int    `json:"errors"`
	Running  int    `json:"running"`
	Streams  []sent `json:"streams"`
}

func (t *truth) finish(s sent, prompt, tokens int) {
	t.Lock()
	defer t.Unlock()
	t.Requests++
	t.Tokens += tokens
	t.Prompt += prompt
	t.Streams = append(t.Streams, s)
}

func (t *truth) add(field *int, n int) {
	t.Lock()
	*field += n
	t.Unlock()
}

func (t *truth) running() int {
	t.Lock()
	defer t.Unlock()
	return t.Running
}

func (t *truth) tell(w http.ResponseWriter, _ *http.Request) {
	t.Lock()
	defer t.Unlock()
	_ = json.NewEncoder(w).Encode(t)
}

func (t *truth) reset(w http.ResponseWriter, _ *http.Request) {
	t.Lock()
	defer t.Unlock()
	t.Requests, t.Tokens, t.Prompt, t.Aborted, t.Errors, t.Streams = 0, 0, 0, 0, 0, nil
	w.WriteHeader(http.StatusOK)
}

func now() int64 { return int64(time.Since(started)) }

var (
	started = time.Now()
	born    = started
)
