package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

// generation is one answer on its way; it counts from begin, which is later than asked where it had to wait for a slot.
type generation struct {
	*server
	chat         bool
	asked, begin int64
	prompt       int
	tokens       []string
	reason       string
	broken       string
	model, id    string
	pace         float64
}

// due is when token k shall be written.
func (g generation) due(k int) int64 {
	ms := g.ttft + float64(k)*g.itl
	if k > 0 && k >= len(g.tokens)/2 {
		ms += g.stall
	}
	return g.begin + int64(ms*g.pace*1e6)
}

func (g generation) usage() map[string]int {
	tokens := len(g.tokens)
	if g.broken == "boast" {
		tokens *= 100
	}
	return map[string]int{"prompt_tokens": g.prompt, "completion_tokens": tokens, "total_tokens": g.prompt + tokens}
}

// wait sleeps until the absolute moment at; false when the client or the server has gone before.
func (g generation) wait(r *http.Request, at int64) bool {
	timer := time.NewTimer(time.Duration(at - now()))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.Context().Done():
		return false
	case <-g.stopping:
		return false
	}
}

func (g generation) stream(w http.ResponseWriter, r *http.Request, usage bool) {
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	flush := w.(http.Flusher)
	send := func(event string) {
		_, _ = w.Write([]byte("data: " + event + "\n\n"))
		flush.Flush()
	}
	role := func() { send(g.chunk(map[string]any{"role": "assistant", "content": ""}, nil)) }
	if g.chat && g.roleEarly >= 0 && g.wait(r, g.begin+int64(g.roleEarly*1e6)) {
		role()
	}
	g.spoil()
	told := sent{Start: g.asked}
	pieces, last := g.pieces(), int64(0)
	for k, piece := range pieces {
		if !g.wait(r, g.due(k)) || (k == len(pieces)/2 && g.breaks()) {
			g.cut(r, send)
			return
		}
		if k == 0 && g.chat && g.roleEarly < 0 {
			role()
		}
		at := now()
		send(piece)
		if k == 0 {
			told.TTFT = at - g.asked
		} else {
			told.Gaps = append(told.Gaps, at-last)
		}
		last = at
	}
	if usage && g.broken != "no-usage" {
		send(g.event([]any{}, g.usage()))
	}
	if g.broken != "no-done" {
		send("[DONE]")
	}
	told.Total = now() - g.asked
	g.truth.finish(told, g.prompt, len(g.tokens))
}

// spoil is for the faults that end a stream as if nothing were wrong.
func (g *generation) spoil() {
	switch g.broken {
	case "short":
		g.tokens, g.reason = g.tokens[:len(g.tokens)/2], "stop"
	case "empty":
		g.tokens = nil
	}
}

func (g generation) breaks() bool {
	return g.broken == "stream-error" || g.broken == "cut" || g.broken == "hang"
}

// cut ends a stream as a vLLM does whose engine is gone: an error object, and then [DONE] all the same; or without a word; or not at all.
func (g generation) cut(r *http.Request, send func(string)) {
	if r.Context().Err() != nil {
		g.truth.add(&g.truth.Aborted, 1)
		return
	}
	g.truth.add(&g.truth.Errors, 1)
	switch g.broken {
	case "cut":
		panic(http.ErrAbortHandler)
	case "hang":
		select {
		case <-r.Context().Done():
		case <-g.stopping:
		}
		return
	}
	send(`{"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "param": null, "code": 500}}`)
	send("[DONE]")
}

// pieces are the events of all tokens, made beforehand: only writing them takes time while the stream runs.
func (g generation) pieces() []string {
	const hole = "@@hole@@"
	before, after, _ := strings.Cut(g.piece(hole, nil), hole)
	if len(g.tokens) == 0 {
		return []string{g.piece("", g.reason)}
	}
	events := make([]string, len(g.tokens))
	for k, token := range g.tokens {
		if g.emptyChunks && k%8 == 3 {
			token = ""
		}
		text, _ := json.Marshal(token)
		events[k] = before + string(text[1:len(text)-1]) + after
	}
	var reason any = g.reason
	if g.broken == "no-finish" {
		reason = nil
	}
	last := len(events) - 1
	events[last] = g.piece(g.tokens[last], reason)
	return events
}

// logprobs are as sure of each token as of the one before: known values, moved by --unsure.
func (g generation) logprobs(top any) any {
	if top == nil {
		return nil
	}
	sure := make([]float64, len(g.tokens))
	tops := make([]map[string]float64, len(g.tokens))
	for k, token := range g.tokens {
		sure[k] = -0.25 - g.unsure
		tops[k] = map[string]float64{token: sure[k], "other": -1.5 - g.unsure}
	}
	return map[string]any{"tokens": g.tokens, "token_logprobs": sure, "top_logprobs": tops}
}

func (g generation) whole(w http.ResponseWriter, top any) {
	time.Sleep(time.Duration(g.due(len(g.tokens)-1) - now()))
	text := strings.TrimSpace(strings.Join(g.tokens, ""))
	choice := map[string]any{"index": 0, "text": text, "finish_reason": g.reason, "logprobs": g.logprobs(top)}
	if g.chat {
		choice = map[string]any{"index": 0, "message": map[string]any{"role": "assistant", "content": text}, "finish_reason": g.reason}
	}
	reply(w, 200, map[string]any{"id": g.id, "object": g.object(false), "created": 1760000000, "model": g.model, "choices": []any{choice}, "usage": g.usage()})
	g.truth.finish(sent{Start: g.asked, TTFT: now() - g.asked, Total: now() - g.asked}, g.prompt, len(g.tokens))
}

func (g generation) piece(token string, reason any) string {
	if g.chat {
		key := "content"
		if g.reasoning {
			key = "reasoning_content"
		}
		return g.chunk(map[string]any{key: token}, reason)
	}
	return g.event([]any{map[string]any{"index": 0, "text": token, "logprobs": nil, "finish_reason": reason}}, nil)
}

func (g generation) chunk(delta map[string]any, reason any) string {
	return g.event([]any{map[string]any{"index": 0, "delta": delta, "logprobs": nil, "finish_reason": reason}}, nil)
}

func (g generation) event(choices []any, usage map[string]int) string {
	body := map[string]any{"id": g.id, "object": g.object(true), "created": 1760000000, "model": g.model, "choices": choices}
	if usage != nil {
		body["usage"] = usage
	}
	text, _ := json.Marshal(body)
	return string(text)
}

func (g generation) object(streamed bool) string {
	switch {
	case !g.chat:
		return "text_completion"
	case streamed:
		return "chat.completion.chunk"
	}
	return "chat.completion"
}
