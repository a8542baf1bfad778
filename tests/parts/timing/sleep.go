package main

import (
	"fmt"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"
)

// bed is where the engine sleeps as vLLM does by its development endpoints: it takes requests, holds them until it is woken, and gives
// back its card, a file that one engine at a time can lock. Woken onto a card that is taken it answers 500, and fails every request after.
type bed struct {
	sync.Mutex
	woken  *sync.Cond
	asleep bool
	spoilt bool
	card   *os.File
}

func (s *server) makeBed(mux *http.ServeMux) {
	s.bed.woken = sync.NewCond(&s.bed)
	if s.card != "" {
		s.bed.card, _ = os.OpenFile(s.card, os.O_CREATE|os.O_RDWR, 0o600)
		if !s.bed.take() {
			fmt.Fprintln(os.Stderr, "(EngineCore pid=1) ValueError: Free memory on device cuda:0 (1.0/139.8 GiB) on startup is less than desired GPU memory utilization (0.9, 125.8 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.")
			os.Exit(1)
		}
	}
	if os.Getenv("VLLM_SERVER_DEV_MODE") == "1" {
		mux.HandleFunc("POST /sleep", s.sleep)
		mux.HandleFunc("POST /wake_up", s.wake)
		mux.HandleFunc("GET /is_sleeping", func(w http.ResponseWriter, _ *http.Request) {
			s.bed.Lock()
			defer s.bed.Unlock()
			reply(w, 200, map[string]bool{"is_sleeping": s.bed.asleep})
		})
	}
}

func (b *bed) take() bool {
	return b.card == nil || syscall.Flock(int(b.card.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
}

func (s *server) sleep(w http.ResponseWriter, _ *http.Request) {
	if s.sleepless {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	s.bed.Lock()
	s.bed.asleep = true
	s.bed.Unlock()
	for s.truth.running() > 0 {
		time.Sleep(2 * time.Millisecond)
	}
	if s.bed.card != nil {
		_ = syscall.Flock(int(s.bed.card.Fd()), syscall.LOCK_UN)
	}
}

func (s *server) wake(w http.ResponseWriter, _ *http.Request) {
	s.bed.Lock()
	defer s.bed.Unlock()
	s.bed.asleep, s.bed.spoilt = false, s.bed.spoilt || !s.bed.take()
	s.bed.woken.Broadcast()
	if s.bed.spoilt {
		w.WriteHeader(http.StatusInternalServerError)
	}
}

// awake waits until the engine is; false where it will never answer again.
func (b *bed) awake() bool {
	b.Lock()
	defer b.Unlock()
	for b.asleep {
		b.woken.Wait()
	}
	return !b.spoilt
}
