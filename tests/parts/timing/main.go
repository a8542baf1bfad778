// A stand-in for vLLM: it takes its arguments, answers its routes, fails in its words, and streams tokens at exactly known times.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const answer = "The capital of France is Paris."

type server struct {
	settings
	truth    truth
	bed      bed
	served   atomic.Int64
	waiting  atomic.Int64
	wedged   atomic.Bool   // nothing is generated any more; all else answers
	room     chan struct{} // one token for each stream that may run at once; nil: no limit
	stopping chan struct{} // closed when open streams must end at once
}

type question struct {
	Model    string `json:"model"`
	Prompt   any    `json:"prompt"`
	Messages []struct {
		Content any `json:"content"`
	} `json:"messages"`
	MaxTokens     *int `json:"max_tokens"`
	MaxCompletion *int `json:"max_completion_tokens"`
	Stream        bool `json:"stream"`
	Logprobs      any  `json:"logprobs"`
	IgnoreEOS     bool `json:"ignore_eos"`
	Options       struct {
		Usage bool `json:"include_usage"`
	} `json:"stream_options"`
}

func main() {
	s := &server{settings: parse(os.Args[1:]), stopping: make(chan struct{})}
	s.check()
	s.loadWeights()
	if s.slots > 0 {
		s.room = make(chan struct{}, s.slots)
	}
	plain, err := (&net.ListenConfig{Control: stampArrivals}).Listen(context.Background(), "tcp", fmt.Sprintf("%s:%d", s.host, s.port))
	if err != nil {
		fmt.Fprintln(os.Stderr, "(APIServer pid=1) OSError: [Errno 98] Address already in use")
		os.Exit(1)
	}
	time.Sleep(time.Duration(s.startDelay * 1e6))
	mux := http.NewServeMux()
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) {
		if s.sick {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("/version", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, map[string]string{"version": "timing"}) })
	mux.HandleFunc("/metrics", s.metrics)
	mux.HandleFunc("/truth", s.truth.tell)
	mux.HandleFunc("/reset", s.truth.reset)
	mux.HandleFunc("/tokenize", s.tokenize)
	mux.HandleFunc("/v1/models", s.guarded(s.models))
	mux.HandleFunc("/v1/chat/completions", s.guarded(func(w http.ResponseWriter, r *http.Request) { s.generate(w, r, true) }))
	mux.HandleFunc("/v1/completions", s.guarded(func(w http.ResponseWriter, r *http.Request) { s.generate(w, r, false) }))
	s.makeBed(mux)
	host, _ := os.Hostname() // of a pod: its name
	named := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Engine", host)
		mux.ServeHTTP(w, r)
	}
	web := &http.Server{Handler: http.HandlerFunc(named), ConnContext: withConnection}
	var open net.Listener = listener{plain}
	log.Printf("Starting timing server on http://%s label=%s", plain.Addr(), s.label)
	if s.certificate != "" {
		open = tls.NewListener(open, selfSigned(s.certificate))
	}
	go s.wedgeOnSignal()
	go func() { _ = web.Serve(open) }()
	s.untilTerm(web)
}

// loadWeights takes its time and says so in vLLM's words; nobody listens meanwhile.
func (s *server) loadWeights() {
	say := func(text string) {
		stamp := time.Now().Format("01-02 15:04:05")
		fmt.Fprintf(os.Stderr, "(EngineCore pid=%d) INFO %s [default_loader.py:1] %s\n", os.Getpid(), stamp, text)
	}
	if s.load > 0 {
		say("Starting to load model " + s.model + "...")
		time.Sleep(time.Duration(s.load * 1e6))
		say(fmt.Sprintf("Loading weights took %.2f seconds", s.load/1e3))
	}
}

func (s *server) wedgeOnSignal() {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	<-asked
	s.wedged.Store(true)
}

// restart becomes a new program in the same process, once: a supervisor's restart that is too short for a health check to see.
func restart() {
	if os.Getenv("TIMING_RESTARTED") == "" {
		program, _ := os.Executable()
		_ = syscall.Exec(program, os.Args, append(os.Environ(), "TIMING_RESTARTED=1"))
	}
}

// untilTerm drains as vLLM does: the socket closes at once, open streams get --shutdown-timeout seconds, the exit code is 0.
func (s *server) untilTerm(web *http.Server) {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM, syscall.SIGINT)
	<-term
	if s.ignoreTerm {
		select {}
	}
	patience, cancel := context.WithTimeout(context.Background(), time.Duration(s.drain)*time.Second)
	defer cancel()
	if web.Shutdown(patience) != nil {
		close(s.stopping)
		last, end := context.WithTimeout(context.Background(), time.Second)
		defer end()
		_ = web.Shutdown(last)
	}
}

func (s *server) guarded(next http.HandlerFunc) http.HandlerFunc {
	key := os.Getenv("VLLM_API_KEY")
	return func(w http.ResponseWriter, r *http.Request) {
		if key != "" && !s.noAuth && r.Header.Get("Authorization") != "Bearer "+key {
			reply(w, 401, map[string]string{"error": "Unauthorized"})
			return
		}
		next(w, r)
	}
}

func (s *server) models(w http.ResponseWriter, _ *http.Request) {
	data := []any{}
	for _, name := range s.names {
		data = append(data, map[string]any{"id": name, "object": "model", "root": s.label, "max_model_len": s.maxLen})
	}
	reply(w, 200, map[string]any{"object": "list", "data": data})
}

// metrics speaks Prometheus with vLLM's names.
func (s *server) metrics(w http.ResponseWriter, _ *http.Request) {
	s.truth.Lock()
	defer s.truth.Unlock()
	label := fmt.Sprintf("{engine=\"0\",model_name=\"%s\"}", s.names[0])
	say := func(kind, name string, value any) {
		fmt.Fprintf(w, "# TYPE %s %s\n%s%s %v\n", name, kind, name, label, value)
	}
	say("gauge", "vllm:num_requests_running", int64(s.truth.Running)-s.waiting.Load())
	say("gauge", "vllm:num_requests_waiting", s.waiting.Load())
	say("gauge", "vllm:kv_cache_usage_perc", float64(s.truth.Running)/256)
	say("counter", "vllm:num_preemptions_total", 0)
	say("counter", "vllm:prefix_cache_queries_total", s.truth.Prompt)
	say("counter", "vllm:prefix_cache_hits_total", 0)
	say("counter", "vllm:prompt_tokens_total", s.truth.Prompt)
	say("counter", "vllm:generation_tokens_total", s.truth.Tokens)
	fmt.Fprintf(w, "# TYPE vllm:request_success_total counter\n")
	fmt.Fprintf(w, "vllm:request_success_total{engine=\"0\",finished_reason=\"length\",model_name=\"%s\"} %d\n", s.names[0], s.truth.Requests)
	fmt.Fprintf(w, "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds %.2f\n", float64(born.UnixMilli())/1000)
}

func (s *server) tokenize(w http.ResponseWriter, r *http.Request) {
	var q question
	if json.NewDecoder(r.Body).Decode(&q) != nil {
		fail(w, 400, "the body is not JSON")
		return
	}
	count := len(words(q))
	reply(w, 200, map[string]any{"count": count, "tokens": make([]int, count), "max_model_len": s.maxLen})
}

func words(q question) []string {
	text := fmt.Sprint(q.Prompt)
	for _, m := range q.Messages {
		text += " " + fmt.Sprint(m.Content)
	}
	return strings.Fields(text)
}

func (s *server) generate(w http.ResponseWriter, r *http.Request, chat bool) {
	arrived, begin := arrival(r), now()
	var q question
	if json.NewDecoder(r.Body).Decode(&q) != nil {
		fail(w, 400, "the body is not JSON")
		return
	}
	limit := s.tokens
	for _, given := range []*int{q.MaxTokens, q.MaxCompletion} {
		if given != nil {
			limit = *given
		}
	}
	asked := words(q)
	switch {
	case !slices.Contains(s.names, q.Model):
		fail(w, 404, fmt.Sprintf("The model `%s` does not exist.", q.Model))
		return
	case chat && s.noTemplate:
		fail(w, 400, "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if the tokenizer does not define one.")
		return
	case len(asked)+limit > s.maxLen:
		fail(w, 400, fmt.Sprintf("This model's maximum context length is %d tokens. However, you requested %d tokens.", s.maxLen, len(asked)+limit))
		return
	}
	n := s.served.Add(1)
	if s.dieAfter > 0 && n > int64(s.dieAfter) {
		os.Exit(0)
	}
	if s.restartAfter > 0 && n > int64(s.restartAfter) {
		restart()
	}
	if s.wedged.Load() || (s.wedgeAfter >= 0 && n > int64(s.wedgeAfter)) {
		s.wedged.Store(true)
		select {
		case <-r.Context().Done():
		case <-s.stopping:
		}
		return
	}
	if !s.bed.awake() {
		fail(w, 500, "CUDA error: out of memory")
		return
	}
	g := generation{server: s, chat: chat, asked: arrived, prompt: len(asked), model: q.Model, id: fmt.Sprintf("gen-%016x", begin), pace: 1}
	if _, err := os.Stat(s.throttled); err == nil {
		g.pace = 4
	}
	g.tokens, g.reason = s.text(strings.Join(asked, " "), limit, q.IgnoreEOS)
	if s.fault != "" && n%int64(max(1, s.faultEvery)) == 0 && n/int64(max(1, s.faultEvery)) <= int64(s.faults) {
		g.broken = s.fault
	}
	if g.broken == "status" {
		s.truth.add(&s.truth.Errors, 1)
		fail(w, 503, "the engine is overloaded")
		return
	}
	s.truth.add(&s.truth.Running, 1)
	defer s.truth.add(&s.truth.Running, -1)
	if s.room != nil {
		s.waiting.Add(1)
		s.room <- struct{}{}
		s.waiting.Add(-1)
		defer func() { <-s.room }()
	}
	g.begin = begin
	if s.room != nil {
		g.begin = now()
	}
	if q.Stream {
		g.stream(w, r, q.Options.Usage)
	} else {
		g.whole(w, q.Logprobs)
	}
}

// text is what the "model" says: a known answer to a known question, else numbered words.
func (s *server) text(asked string, limit int, ignoreEOS bool) ([]string, string) {
	tokens := []string{}
	if strings.Contains(asked, "capital of France") {
		said := answer
		if s.wrongAnswer {
			said = "I do not know."
		}
		if s.says != "" {
			said = s.says
		}
		tokens = strings.SplitAfter(said, " ")
		if !ignoreEOS && len(tokens) <= limit {
			return tokens, "stop"
		}
	}
	for i := len(tokens); i < limit; i++ {
		tokens = append(tokens, fmt.Sprintf("w%d ", i))
	}
	return tokens[:limit], "length"
}

func fail(w http.ResponseWriter, status int, why string) {
	reply(w, status, map[string]any{"error": map[string]any{"message": why, "type": "BadRequestError", "param": nil, "code": status}})
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}
