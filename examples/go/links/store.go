// Package links keeps short names for long URLs.
package links

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
)

const maxURLBytes = 2048

// Store answers PUT /name (the body is the URL) and GET /name (a redirect to it).
type Store struct {
	mutex sync.RWMutex
	urls  map[string]string
}

// NewStore returns a store without links.
func NewStore() *Store { return &Store{urls: map[string]string{}} }

func (s *Store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	switch {
	case name == "" || strings.Contains(name, "/"):
		http.NotFound(w, r)
	case r.Method == http.MethodPut:
		s.put(name, w, r)
	case r.Method == http.MethodGet:
		s.get(name, w, r)
	default:
		http.Error(w, "GET or PUT", http.StatusMethodNotAllowed)
	}
}

func (s *Store) put(name string, w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxURLBytes))
	target := strings.TrimSpace(string(body))
	parsed, parseErr := url.Parse(target)
	if err != nil || parseErr != nil || parsed.Host == "" {
		http.Error(w, "the body is to be one absolute URL", http.StatusBadRequest)
		return
	}
	s.mutex.Lock()
	s.urls[name] = target
	s.mutex.Unlock()
	w.WriteHeader(http.StatusCreated)
}

func (s *Store) get(name string, w http.ResponseWriter, r *http.Request) {
	s.mutex.RLock()
	target, found := s.urls[name]
	s.mutex.RUnlock()
	if !found {
		http.NotFound(w, r)
		return
	}
	http.Redirect(w, r, target, http.StatusFound)
}
