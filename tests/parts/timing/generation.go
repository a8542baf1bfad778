package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

// generation is one answer on its way.
type generation struct {
	*server
	chat      bool
	begin     int64
	prompt    int
	tokens    []string
	reason    string
	model, id string
}

func (g generation) due(k int) int64 { return g.begin + int64((g.ttft+float64(k)*g.itl)*1e6) }

func (g generation) usage() map[string]int {
	return map[string]int{"prompt_tokens": g.prompt, "completion_tokens": len(g.tokens), "total_tokens": g.prompt + len(g.tokens)}
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
	told := sent{Start: g.begin}
	last := int64(0)
	for k, token := range g.tokens {
		if !g.wait(r, g.due(k)) || (g.streamError && k == len(g.tokens)/2) {
			g.cut(r, send)
			return
		}
		if k == 0 && g.chat {
			send(g.chunk(map[string]any{"role": "assistant", "content": ""}, nil))
		}
		var reason any
		if k == len(g.tokens)-1 {
			reason = g.reason
		}
		send(g.piece(token, reason))
		at := now()
		if k == 0 {
			told.TTFT = at - g.begin
		} else {
			told.Gaps = append(told.Gaps, at-last)
		}
		last = at
	}
	if usage {
		send(g.event([]any{}, g.usage()))
	}
	send("[DONE]")
	told.Total = now() - g.begin
	g.truth.finish(told, len(g.tokens))
}

// cut ends a stream as a vLLM does whose engine is gone: an error object, and then [DONE] all the same.
func (g generation) cut(r *http.Request, send func(string)) {
	if r.Context().Err() != nil {
		g.truth.add(&g.truth.Aborted, 1)
		return
	}
	g.truth.add(&g.truth.Errors, 1)
	send(`{"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "param": null, "code": 500}}`)
	send("[DONE]")
}

func (g generation) whole(w http.ResponseWriter) {
	time.Sleep(time.Duration(g.due(len(g.tokens)-1) - now()))
	text := strings.TrimSpace(strings.Join(g.tokens, ""))
	choice := map[string]any{"index": 0, "text": text, "finish_reason": g.reason}
	if g.chat {
		choice = map[string]any{"index": 0, "message": map[string]any{"role": "assistant", "content": text}, "finish_reason": g.reason}
	}
	reply(w, 200, map[string]any{"id": g.id, "object": g.object(false), "created": 1760000000, "model": g.model, "choices": []any{choice}, "usage": g.usage()})
	g.truth.finish(sent{Start: g.begin, TTFT: now() - g.begin, Total: now() - g.begin}, len(g.tokens))
}

func (g generation) piece(token string, reason any) string {
	if g.chat {
		return g.chunk(map[string]any{"content": token}, reason)
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
