"""Harmless texts in many languages, with the invisible characters, marks and styled letters of ordinary writing."""

ORDINARY_TEXTS = {
    "English": "The café’s “blue” door — 5 m² of oak, 3 °C colder, ½ price™ — opens at 9… It’s a naïve plan: CO₂, H₂O, 10 µm.",
    "Russian": "Привет! У нас всё хорошо: сор из избы, рос лес, оса и хор. VIP-персона купила 3D-принтер и iPhone, замо́к.",
    "Ukrainian": "Їжак і ґава йдуть у гай. Об’єкт «Мрія» — це літак, а є ще й інші: сосна, око, рис.",
    "Greek": "Καλημέρα κόσμε! Πώς είσαι σήμερα; Ο ήλιος και η θάλασσα. Ἄνδρες Ἀθηναῖοι, ᾧ καὶ ὦ.",
    "Chinese": "你好，世界！这是（一个）测试：“引号”、１２３号楼。第①步：打开门；第②步：关上门。　多少钱？",
    "Japanese": "東京　大阪　名古屋　福岡。こんにちは、Ａ社の田中です。料金は１２０円（税込）、㈱と℃と№。カタカナー",
    "Korean": "안녕하세요? 오늘 날씨가 참 좋습니다. ‘책’을 읽고, 커피를 마셔요.",
    "Hindi": "नमस्ते! क्‍या हाल है? श्री राम, र्‍य और द्‌य। मैं ठीक हूँ।",
    "Persian": "می‌خواهم به خانه‌ها بروم. کتاب‌های او را نمی‌شناسم؛ ه‍ یک حرف است.",
    "Arabic": "مرحبا بكم في المدينة. الاسم \u200fWikipedia\u200f موقع معروف، والسعر ٢٥ ريالًا.",
    "Hebrew": "שלום! השפה \u200eC++\u200e נפוצה, והמחיר 25 ש״ח. הספר \u2068Dune\u2069 טוב.",
    "French": "Le prix : 10\u202f000\u202f000 € « oui » ; l’été à Noël, où ? Ça va ! L’œuvre du XIXᵉ siècle, n°\u00a05.",
    "Vietnamese": "Tiếng Việt rất đẹp: người Việt Nam được hưởng một ngày nghỉ, trời ướt và đường trơn.",
    "Turkish": "Kapıyı kapatır mısın? Işık çok güzel, şimdi ağır ağır yağmur yağıyor.",
    "Lithuanian": "Žąsų šėšėlį matė ąžuolų miške; įžūlūs žvirbliai čiulba.",
    "Yoruba": "Ẹ kú àárọ̀. Mo ń kọ́ èdè Yorùbá ní ilé ẹ̀kọ́; ọ̀rẹ́ mi ń ṣiṣẹ́.",
    "Thai": "สวัสดีครับ วันนี้อากาศดีมาก ไปเที่ยวกันไหม?",
    "emoji": "Well done 👩‍👩‍👧 ❤️‍🔥 1️⃣ #️⃣ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🇩🇪🇫🇷 ☀️ ©️ 👮🏽‍♂️ ✌🏿, 🅰️ and Ⓜ️!",
    "mathematics": "Let 𝑥 ∈ ℝ, Δt = 3 ms, ε > 0, αx + βy ≤ π; x̄ is the mean, f(𝑥) = 2ⁿ, a₁ ≠ ∞, 5 kΩ, Ⅳ. chapter.",
}
