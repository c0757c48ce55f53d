// Open-loop load over HTTP/1.1: requests are sent at a fixed rate, whether or not responses come.
//
// One thread and epoll: a request costs about as much CPU as its system calls. Each request is due at a fixed
// time. It takes the connection that became free last, or opens one. Its latency counts from the time at
// which it was due, so a generator that is late does not hide what a caller would wait.
//
// usage: open_loop ADDRESS REQUESTS RESULTS RATE SECONDS MAX_IN_FLIGHT KEPT TIMEOUT
//
//	ADDRESS        IPv4 address and port of the server
//	REQUESTS       file of requests, sent in turn; each is a u32 (little endian) with its length, and its bytes
//	RESULTS        file to write
//	RATE           requests per second; 0: each of MAX_IN_FLIGHT connections sends as soon as it has a response
//	SECONDS        duration
//	MAX_IN_FLIGHT  requests that wait for a response at the same time; further ones are not sent
//	KEPT           idle connections that are kept, and opened before the first request
//	TIMEOUT        seconds until a request without a response has failed
//
// A result is: i64 time at which the request was due (ns since the Unix epoch), i64 latency (ns), u16 status
// (0 without a response), u8 why there is no response, u8 unused, u32 length of the body, and the body.
// The last line of the output is the number of requests that were not sent.
package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

const (
	answered = iota
	timedOut
	unconnected // no connection within the timeout
	reset
	closed // the server closed the connection without a response
	refused
)

const (
	sysEpollPwait2 = 441
	edgeTriggered  = 1 << 31
	maxRequests    = 1 << 20
)

var headEnd = []byte("\r\n\r\n")

type connection struct {
	fd        int
	connected bool
	busy      bool
	dueAt     int64 // ns since the Unix epoch
	request   []byte
	received  []byte
	number    uint64 // of its request
}

type deadline struct {
	at     int64
	fd     int
	number uint64
}

type generator struct {
	address   syscall.SockaddrInet4
	epoll     int
	open      map[int]*connection
	idle      []*connection
	deadlines []deadline
	first     int // index of the first deadline that counts
	requests  [][]byte
	next      int
	inFlight  int
	maximum   int
	kept      int
	timeout   int64
	number    uint64
	unsent    int
	results   *bufio.Writer
	buffer    []byte
}

func main() {
	if len(os.Args) != 9 {
		fail(fmt.Errorf("usage: %s ADDRESS REQUESTS RESULTS RATE SECONDS MAX_IN_FLIGHT KEPT TIMEOUT", os.Args[0]))
	}
	runtime.LockOSThread()
	address, err := netip.ParseAddrPort(os.Args[1])
	fail(err)
	content, err := os.ReadFile(os.Args[2])
	fail(err)
	file, err := os.Create(os.Args[3])
	fail(err)
	rate, seconds, timeout := number(4), number(5), number(8)
	epoll, err := syscall.EpollCreate1(0)
	fail(err)
	g := &generator{
		address: syscall.SockaddrInet4{Port: int(address.Port()), Addr: address.Addr().As4()},
		epoll:   epoll,
		open:    map[int]*connection{},
		maximum: int(number(6)),
		kept:    int(number(7)),
		timeout: int64(timeout * 1e9),
		results: bufio.NewWriterSize(file, 1<<20),
		buffer:  make([]byte, 1<<16),
	}
	for at := 0; at < len(content); {
		size := int(binary.LittleEndian.Uint32(content[at:]))
		g.requests = append(g.requests, content[at+4:at+4+size])
		at += 4 + size
	}
	g.warm()
	g.run(rate, int64(seconds*1e9))
	fail(g.results.Flush())
	fail(file.Close())
	fmt.Println(g.unsent)
}

func number(index int) float64 {
	value, err := strconv.ParseFloat(os.Args[index], 64)
	fail(err)
	return value
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// warm opens the connections that are kept.
func (g *generator) warm() {
	until := now() + g.timeout
	for len(g.open) < g.kept {
		g.connect()
	}
	for len(g.idle) < g.kept && now() < until {
		g.wait(int64(time.Millisecond))
	}
	if len(g.idle) < g.kept {
		fail(fmt.Errorf("only %d of %d connections could be opened", len(g.idle), g.kept))
	}
}

func (g *generator) run(rate float64, duration int64) {
	began := now()
	sent := 0
	for {
		at := now()
		sending := at < began+duration
		if !sending && g.inFlight == 0 {
			return
		}
		until := at + int64(time.Second)
		if rate == 0 {
			for sending && g.inFlight < g.maximum {
				g.send(at)
			}
		} else {
			for {
				due := began + int64(float64(sent)/rate*1e9)
				if due >= began+duration {
					break
				}
				if due > at {
					until = min(until, due)
					break
				}
				sent++
				if g.inFlight < g.maximum {
					g.send(due)
				} else {
					g.unsent++
				}
			}
		}
		for g.first < len(g.deadlines) {
			one := g.deadlines[g.first]
			if c := g.open[one.fd]; c != nil && c.busy && c.number == one.number {
				if one.at > at {
					until = min(until, one.at)
					break
				}
				if c.connected {
					g.end(c, timedOut)
				} else {
					g.end(c, unconnected)
				}
			}
			g.first++
		}
		if g.first > maxRequests {
			g.deadlines = append(g.deadlines[:0], g.deadlines[g.first:]...)
			g.first = 0
		}
		g.wait(max(until-now(), 0))
	}
}

// send sends the next request, which was due at a time.
func (g *generator) send(due int64) {
	var c *connection
	if last := len(g.idle) - 1; last >= 0 {
		c, g.idle = g.idle[last], g.idle[:last]
	} else {
		c = g.connect()
	}
	g.number++
	c.busy, c.dueAt, c.number = true, due, g.number
	c.request = g.requests[g.next]
	g.next = (g.next + 1) % len(g.requests)
	g.inFlight++
	g.deadlines = append(g.deadlines, deadline{now() + g.timeout, c.fd, c.number})
	if c.connected {
		g.write(c)
	}
}

func (g *generator) connect() *connection {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	fail(err)
	fail(syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1))
	c := &connection{fd: fd}
	g.open[fd] = c
	event := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLOUT | edgeTriggered, Fd: int32(fd)}
	fail(syscall.EpollCtl(g.epoll, syscall.EPOLL_CTL_ADD, fd, &event))
	if err := syscall.Connect(fd, &g.address); err != nil && err != syscall.EINPROGRESS {
		fail(err)
	}
	return c
}

func (g *generator) write(c *connection) {
	n, err := syscall.Write(c.fd, c.request)
	if err != nil {
		g.end(c, reset)
	} else if n < len(c.request) {
		fail(fmt.Errorf("a request of %d bytes does not fit into the send buffer", len(c.request)))
	}
}

// wait handles what happens within some nanoseconds.
func (g *generator) wait(ns int64) {
	var events [512]syscall.EpollEvent
	timeout := syscall.NsecToTimespec(ns)
	n, _, failure := syscall.Syscall6(sysEpollPwait2, uintptr(g.epoll), uintptr(unsafe.Pointer(&events[0])),
		uintptr(len(events)), uintptr(unsafe.Pointer(&timeout)), 0, 0)
	if failure == syscall.EINTR {
		return
	} else if failure != 0 {
		fail(failure)
	}
	for _, event := range events[:n] {
		if c := g.open[int(event.Fd)]; c != nil {
			g.on(c, event.Events)
		}
	}
}

func (g *generator) on(c *connection, events uint32) {
	if !c.connected {
		code, err := syscall.GetsockoptInt(c.fd, syscall.SOL_SOCKET, syscall.SO_ERROR)
		if err != nil || code != 0 {
			g.end(c, refused)
			return
		}
		if events&syscall.EPOLLOUT == 0 {
			return
		}
		c.connected = true
		if c.busy {
			g.write(c)
		} else {
			g.idle = append(g.idle, c)
		}
	}
	if events&(syscall.EPOLLIN|syscall.EPOLLHUP|syscall.EPOLLERR) == 0 {
		return
	}
	for {
		n, err := syscall.Read(c.fd, g.buffer)
		if err == syscall.EAGAIN {
			return
		} else if err != nil {
			g.end(c, reset)
			return
		} else if n == 0 {
			g.end(c, closed)
			return
		}
		data := g.buffer[:n]
		if len(c.received) > 0 {
			c.received = append(c.received, data...)
			data = c.received
		}
		if g.respond(c, data) {
			if g.open[c.fd] != c {
				return
			}
			c.received = c.received[:0]
		} else if len(c.received) == 0 {
			c.received = append(c.received, data...)
		}
		if n < len(g.buffer) && events&syscall.EPOLLHUP == 0 {
			return
		}
	}
}

// respond returns whether data is a complete response, and then writes its result.
func (g *generator) respond(c *connection, data []byte) bool {
	end := bytes.Index(data, headEnd)
	if end < 0 {
		return false
	}
	head, body := data[:end+2], data[end+len(headEnd):]
	length, _ := strconv.Atoi(field(head, "\r\ncontent-length: "))
	if len(body) < length || !c.busy {
		return false
	}
	status, _ := strconv.Atoi(string(head[9:12]))
	g.result(c, status, answered, body[:length])
	if field(head, "\r\nconnection: ") == "close" || len(g.idle) >= g.kept {
		g.close(c)
	} else {
		g.idle = append(g.idle, c)
	}
	return true
}

// field returns the value of a header field; the gateway writes names in lower case.
func field(head []byte, name string) string {
	_, after, found := bytes.Cut(head, []byte(name))
	if !found {
		return ""
	}
	return string(after[:bytes.IndexByte(after, '\r')])
}

func (g *generator) result(c *connection, status int, why byte, body []byte) {
	var head [24]byte
	binary.LittleEndian.PutUint64(head[0:], uint64(c.dueAt))
	binary.LittleEndian.PutUint64(head[8:], uint64(now()-c.dueAt))
	binary.LittleEndian.PutUint16(head[16:], uint16(status))
	head[18] = why
	binary.LittleEndian.PutUint32(head[20:], uint32(len(body)))
	g.results.Write(head[:])
	g.results.Write(body)
	c.busy = false
	g.inFlight--
}

// end closes a connection that failed.
func (g *generator) end(c *connection, why byte) {
	if c.busy {
		g.result(c, 0, why, nil)
	} else {
		for i, one := range g.idle {
			if one == c {
				g.idle = append(g.idle[:i], g.idle[i+1:]...)
				break
			}
		}
	}
	g.close(c)
}

func (g *generator) close(c *connection) {
	delete(g.open, c.fd)
	syscall.Close(c.fd)
}

func now() int64 { return time.Now().UnixNano() }
