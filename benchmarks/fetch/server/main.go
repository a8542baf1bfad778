// One repository, org/model, as the Hugging Face Hub and as ModelScope, for benchmarks: every client gets the same latency and the same rate
// for each stream. The arguments are the address to listen on and the model's folder.
//
// GET /__set?latency=MS&rate=MB_PER_S&flip=NAME sets (rate 0: as fast as it goes); GET /__sent?reset=1 gives the bytes sent so far.
package main

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	commit = "0123456789abcdef0123456789abcdef01234567"
	piece  = 64 << 10
)

type file struct {
	path, sha256, sha1 string
	size               int64
}

var (
	folder  string
	files   = map[string]file{}
	names   []string
	sent    atomic.Int64
	setting sync.RWMutex
	latency time.Duration
	rate    float64
	flip    string
)

func main() {
	folder = os.Args[2]
	entries, err := os.ReadDir(folder)
	if err != nil {
		panic(err)
	}
	for _, entry := range entries {
		files[entry.Name()] = describe(entry.Name())
		names = append(names, entry.Name())
	}
	http.HandleFunc("/__set", set)
	http.HandleFunc("/__sent", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, sent.Load())
		if r.URL.Query().Has("reset") {
			sent.Store(0)
		}
	})
	http.HandleFunc("/", answer)
	panic(http.ListenAndServe(os.Args[1], nil))
}

func describe(name string) file {
	opened, err := os.Open(filepath.Join(folder, name))
	if err != nil {
		panic(err)
	}
	defer opened.Close()
	info, _ := opened.Stat()
	large, small := sha256.New(), sha1.New()
	fmt.Fprintf(small, "blob %d\x00", info.Size())
	if _, err := io.Copy(io.MultiWriter(large, small), opened); err != nil {
		panic(err)
	}
	return file{name, hex.EncodeToString(large.Sum(nil)), hex.EncodeToString(small.Sum(nil)), info.Size()}
}

func set(w http.ResponseWriter, r *http.Request) {
	setting.Lock()
	defer setting.Unlock()
	q := r.URL.Query()
	ms, _ := strconv.ParseFloat(q.Get("latency"), 64)
	mb, _ := strconv.ParseFloat(q.Get("rate"), 64)
	latency, rate, flip = time.Duration(ms*float64(time.Millisecond)), mb*1e6, q.Get("flip")
}

func answer(w http.ResponseWriter, r *http.Request) {
	setting.RLock()
	pause, perSecond, flipped := latency, rate, flip
	setting.RUnlock()
	time.Sleep(pause)
	path := r.URL.Path
	switch {
	case strings.HasPrefix(path, "/api/models/org/model/revision/"):
		tell(w, map[string]any{"id": "org/model", "modelId": "org/model", "sha": commit, "private": false, "tags": []string{}, "downloads": 0, "siblings": siblings()})
	case strings.HasPrefix(path, "/api/models/org/model/tree/"):
		tell(w, tree())
	case strings.HasPrefix(path, "/api/v1/models/org/model/repo/files"):
		tell(w, map[string]any{"Code": 200, "Success": true, "Data": map[string]any{"Files": listing()}})
	case path == "/api/v1/models/org/model/repo":
		give(w, r, r.URL.Query().Get("FilePath"), perSecond, flipped)
	case strings.HasPrefix(path, "/org/model/resolve/"):
		give(w, r, strings.SplitN(path, "/", 6)[5], perSecond, flipped)
	default:
		http.NotFound(w, r)
	}
}

func tell(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(value)
}

func lfs(name string) bool { return strings.HasSuffix(name, ".safetensors") }

func siblings() (found []map[string]any) {
	for _, name := range names {
		found = append(found, map[string]any{"rfilename": name})
	}
	return
}

func tree() (found []map[string]any) {
	for _, name := range names {
		one := map[string]any{"type": "file", "path": name, "size": files[name].size, "oid": files[name].sha1}
		if lfs(name) {
			one["lfs"] = map[string]any{"oid": files[name].sha256, "size": files[name].size, "pointerSize": 134}
		}
		found = append(found, one)
	}
	return
}

func listing() (found []map[string]any) {
	for _, name := range names {
		found = append(found, map[string]any{"Path": name, "Name": name, "Type": "blob", "Size": files[name].size, "Sha256": files[name].sha256, "Revision": commit})
	}
	return
}

func give(w http.ResponseWriter, r *http.Request, name string, perSecond float64, flipped string) {
	one, known := files[name]
	if !known {
		http.NotFound(w, r)
		return
	}
	opened, err := os.Open(filepath.Join(folder, name))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer opened.Close()
	tag := one.sha1
	if lfs(name) {
		tag = one.sha256
		w.Header().Set("X-Linked-Etag", `"`+tag+`"`)
		w.Header().Set("X-Linked-Size", strconv.FormatInt(one.size, 10))
	}
	w.Header().Set("ETag", `"`+tag+`"`)
	w.Header().Set("X-Repo-Commit", commit)
	var content io.ReadSeeker = opened
	if flipped == name {
		content = &flipping{opened, one.size / 2}
	}
	http.ServeContent(&slow{w, perSecond, time.Now(), 0}, r, "", time.Time{}, content)
}

// slow writes at most so many bytes a second, and counts them.
type slow struct {
	http.ResponseWriter
	perSecond float64
	began     time.Time
	written   int64
}

func (s *slow) Write(data []byte) (int, error) {
	done := 0
	for done < len(data) {
		end := min(done+piece, len(data))
		if s.perSecond == 0 {
			end = len(data)
		}
		n, err := s.ResponseWriter.Write(data[done:end])
		done += n
		s.written += int64(n)
		sent.Add(int64(n))
		if err != nil {
			return done, err
		}
		if s.perSecond > 0 {
			time.Sleep(time.Until(s.began.Add(time.Duration(float64(s.written) / s.perSecond * float64(time.Second)))))
		}
	}
	return done, nil
}

// flipping gives its file with one bit turned at a place.
type flipping struct {
	*os.File
	at int64
}

func (f *flipping) Read(data []byte) (int, error) {
	from, _ := f.Seek(0, io.SeekCurrent)
	n, err := f.File.Read(data)
	if from <= f.at && f.at < from+int64(n) {
		data[f.at-from] ^= 1
	}
	return n, err
}
