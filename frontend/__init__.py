"""The page: shows what a DeltaBERT server answers. Speaks HTTP only and holds no weights.

`streamlit run frontend/main.py` starts it; `FRONTEND_API_URL` says where the server is, by default
`http://127.0.0.1:8000`. Read `main` first, then `client`, which is the HTTP API as Python.
"""
