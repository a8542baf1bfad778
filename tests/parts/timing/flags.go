package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// settings are the engine's arguments: vLLM's names where it has them, the rest says how to behave or to fail.
type settings struct {
	model, host, label        string
	names                     []string
	port, maxLen, drain       int
	ttft, itl                 float64 // ms
	tokens, dieAfter          int
	startDelay                float64 // ms
	failStart, ignoreTerm     bool
	wrongAnswer, sick         bool
	fault                     string // what is wrong with every faultEvery-th stream; of at most faults streams; see faultKinds
	faultEvery, faults, slots int
	roleEarly, stall          float64 // ms: the role chunk's own time (negative: with the first token); a pause in the middle
	reasoning, emptyChunks    bool
	says, renamed             string // instead of the known answer; instead of every name
	noTemplate, noAuth        bool
	cutContext                int // the longest context, whatever --max-model-len says
	restartAfter, wedgeAfter  int
	card                      string  // a file that one engine at a time can hold
	sleepless                 bool    // asked to sleep, it fails
	throttled                 string  // while this file is there, all takes four times as long
	load, unsure              float64 // ms that its weights take; what is added to its log-probabilities
	certificate               string  // serve HTTPS and write the self-signed certificate there
}

// faultKinds are the ways in which a stream can be wrong without a word from the HTTP status.
var faultKinds = []string{"stream-error", "no-finish", "no-usage", "no-done", "short", "boast", "empty", "cut", "status", "hang"}

// parse reads the arguments as vLLM's argparse would: an unknown one ends the process with code 2 and its words.
func parse(args []string) settings {
	s := settings{host: "127.0.0.1", port: 8000, maxLen: 2048, ttft: 5, itl: 2, tokens: 16, faultEvery: 1, faults: math.MaxInt, roleEarly: -1, wedgeAfter: -1}
	for i := 0; i < len(args); i++ {
		name, value, inline := strings.Cut(args[i], "=")
		next := func() string {
			if inline {
				return value
			}
			i++
			if i >= len(args) {
				usage("argument " + name + ": expected one argument")
			}
			return args[i]
		}
		whole := func() int {
			text := next()
			n, err := strconv.Atoi(text)
			if err != nil {
				usage("argument " + name + ": invalid int value: '" + text + "'")
			}
			return n
		}
		float := func() float64 {
			text := next()
			f, err := strconv.ParseFloat(text, 64)
			if err != nil {
				usage("argument " + name + ": invalid float value: '" + text + "'")
			}
			return f
		}
		switch name {
		case "--model":
			s.model = next()
		case "--served-model-name":
			if inline {
				s.names = append(s.names, value)
			}
			for !inline && i+1 < len(args) && !strings.HasPrefix(args[i+1], "--") {
				s.names = append(s.names, next())
			}
		case "--host":
			s.host = next()
		case "--label", "--dtype", "--gpu-memory-utilization", "--tensor-parallel-size":
			s.label = next()
		case "--port":
			s.port = whole()
		case "--max-model-len":
			s.maxLen = whole()
		case "--shutdown-timeout":
			s.drain = whole()
		case "--ttft":
			s.ttft = float()
		case "--itl":
			s.itl = float()
		case "--tokens":
			s.tokens = whole()
		case "--die-after":
			s.dieAfter = whole()
		case "--start-delay":
			s.startDelay = float()
		case "--fail-start":
			s.failStart = true
		case "--ignore-sigterm":
			s.ignoreTerm = true
		case "--wrong-answer":
			s.wrongAnswer = true
		case "--health-broken":
			s.sick = true
		case "--stream-error":
			s.fault = "stream-error"
		case "--fault":
			if s.fault = next(); !slices.Contains(faultKinds, s.fault) {
				usage("argument --fault: invalid choice: '" + s.fault + "'")
			}
		case "--fault-every":
			s.faultEvery = whole()
		case "--faults":
			s.faults = whole()
		case "--slots":
			s.slots = whole()
		case "--role-early":
			s.roleEarly = float()
		case "--stall":
			s.stall = float()
		case "--reasoning":
			s.reasoning = true
		case "--empty-chunks":
			s.emptyChunks = true
		case "--says":
			s.says = next()
		case "--renamed":
			s.renamed = next()
		case "--no-chat-template":
			s.noTemplate = true
		case "--no-auth":
			s.noAuth = true
		case "--cut-context":
			s.cutContext = whole()
		case "--restart-after":
			s.restartAfter = whole()
		case "--wedge-after":
			s.wedgeAfter = whole()
		case "--card":
			s.card = next()
		case "--sleepless":
			s.sleepless = true
		case "--throttled":
			s.throttled = next()
		case "--weights-ms":
			s.load = float()
		case "--unsure":
			s.unsure = float()
		case "--https":
			s.certificate = next()
		default:
			usage("unrecognized arguments: " + args[i])
		}
	}
	if len(s.names) == 0 {
		s.names = []string{s.model}
	}
	if s.renamed != "" {
		s.names = []string{s.renamed}
	}
	if s.cutContext > 0 {
		s.maxLen = s.cutContext
	}
	return s
}

func usage(why string) {
	fmt.Fprintln(os.Stderr, "usage: timing-server [-h] [--model MODEL]\ntiming-server: error: "+why)
	os.Exit(2)
}

// check ends the process as vLLM does when the model's folder is none, or when it is told to fail.
func (s settings) check() {
	if s.failStart {
		fmt.Fprintln(os.Stderr, "(EngineCore pid=1) ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine.")
		fmt.Fprintln(os.Stderr, "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}")
		os.Exit(1)
	}
	if _, err := os.Stat(filepath.Join(s.model, "config.json")); err != nil {
		fmt.Fprintf(os.Stderr, "(APIServer pid=1)   Value error, Invalid repository ID or local directory specified: '%s'.\n", s.model)
		os.Exit(1)
	}
}
