// links is a link shortener: it keeps its links in memory, and logs a line of JSON for each request.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"example.org/links/links"
)

// version is set by the build: -ldflags "-X main.version=…".
var version = "unknown"

func main() {
	address := flag.String("listen", ":8080", "the address to listen on")
	check := flag.Bool("check", false, "ask the server that runs already whether it is well, and exit 0 if it is")
	flag.Parse()
	if *check {
		os.Exit(checkHealth(*address))
	}

	mux := http.NewServeMux()
	mux.Handle("/", links.NewStore())
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/version", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, version) })
	server := &http.Server{Handler: logged(mux), ReadHeaderTimeout: 10 * time.Second}

	listener, err := net.Listen("tcp", *address)
	if err != nil {
		log.Fatal(err)
	}
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	log.Printf("links %s listens on %s", version, *address)

	select {
	case err := <-ended:
		log.Fatal(err)
	case <-stop.Done():
	}
	patience, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := server.Shutdown(patience); err != nil {
		log.Fatal(err)
	}
	log.Print("links ends in order")
}

func checkHealth(address string) int {
	client := http.Client{Timeout: 5 * time.Second}
	response, err := client.Get("http://127.0.0.1" + address + "/healthz")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		fmt.Fprintln(os.Stderr, response.Status)
		return 1
	}
	return 0
}

func logged(next http.Handler) http.Handler {
	encoder := json.NewEncoder(os.Stdout)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r)
		_ = encoder.Encode(map[string]string{"method": r.Method, "path": r.URL.Path, "client": r.RemoteAddr})
	})
}
