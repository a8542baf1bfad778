package main

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"
)

const timestampNS = 35 // SO_TIMESTAMPNS, and the type of the control message that it brings

// listener hands out connections that know when the kernel got their last bytes: when a request arrived is the network's truth, not
// when this process was scheduled to read it.
type listener struct{ net.Listener }

type connection struct {
	net.Conn
	raw  syscall.RawConn
	last atomic.Int64
}

type connectionKey struct{}

// stampArrivals is for the listening socket: what comes before a connection is accepted is stamped too.
func stampArrivals(_, _ string, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, timestampNS, 1) })
}

func (l listener) Accept() (net.Conn, error) {
	accepted, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	raw, err := accepted.(*net.TCPConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	return &connection{Conn: accepted, raw: raw}, nil
}

func (c *connection) Read(p []byte) (int, error) {
	var read, extra int
	var err error
	var control [64]byte
	waited := c.raw.Read(func(fd uintptr) bool {
		for {
			read, extra, _, _, err = syscall.Recvmsg(int(fd), p, control[:], 0)
			if !errors.Is(err, syscall.EINTR) {
				return !errors.Is(err, syscall.EAGAIN)
			}
		}
	})
	switch {
	case waited != nil:
		return 0, waited
	case err != nil:
		return 0, err
	case read == 0 && len(p) > 0:
		return 0, io.EOF
	}
	at := now()
	if messages, _ := syscall.ParseSocketControlMessage(control[:extra]); len(messages) > 0 && len(messages[0].Data) >= 16 {
		data := messages[0].Data
		stamp := int64(binary.NativeEndian.Uint64(data))*1e9 + int64(binary.NativeEndian.Uint64(data[8:]))
		if late := time.Now().UnixNano() - stamp; late >= 0 && late < 5e9 {
			at -= late
		}
	}
	c.last.Store(at)
	return read, nil
}

func withConnection(ctx context.Context, c net.Conn) context.Context {
	if secure, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = secure.NetConn()
	}
	return context.WithValue(ctx, connectionKey{}, c)
}

// arrival is when the last bytes of the request's head came to this machine.
func arrival(r *http.Request) int64 {
	if c, ok := r.Context().Value(connectionKey{}).(*connection); ok {
		return c.last.Load()
	}
	return now()
}
